// Sums up orders by customer. Try it: belljar run examples/report.js --inputs examples/inputs.json --save out

import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

// Inputs come by name. What is returned is the result; what is logged is a log, live.
export async function main({ title, orders }) {
  console.log(`${title}: ${orders.length} orders`);
  const totals = {};
  for (const order of orders) {
    await sleep(200); // Work that takes a while: watch the log grow.
    console.log(`  order ${order.id}: ${order.customer} ${order.amount.toFixed(2)} (${order.status})`);
    if (order.status === "paid") {
      totals[order.customer] = (totals[order.customer] ?? 0) + order.amount;
    }
  }

  // A file left in the working directory becomes an artifact.
  const rows = Object.entries(totals).map(([customer, paid]) => ({ customer, paid }));
  await writeFile("report.json", JSON.stringify(rows, null, 2));

  return { title, paid: totals, total: rows.reduce((sum, row) => sum + row.paid, 0) };
}
