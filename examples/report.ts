// Sums up orders by customer. Try it: belljar run examples/report.ts --inputs examples/inputs.json --save out

import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

enum Status {
  Open = "open",
  Paid = "paid",
  Refunded = "refunded",
}

interface Order {
  id: number;
  customer: string;
  amount: number;
  status: Status;
}

class Ledger {
  private readonly totals = new Map<string, number>();

  constructor(public readonly title: string) {}

  add(order: Order): void {
    if (order.status !== Status.Paid) return;
    this.totals.set(order.customer, (this.totals.get(order.customer) ?? 0) + order.amount);
  }

  get paid(): Record<string, number> {
    return Object.fromEntries(this.totals);
  }

  get total(): number {
    return [...this.totals.values()].reduce((sum, amount) => sum + amount, 0);
  }

  toMarkdown(): string {
    const rows = [...this.totals].map(([customer, paid]) => `| ${customer} | ${paid.toFixed(2)} |`);
    return [`# ${this.title}`, "", "| customer | paid |", "|---|---|", ...rows, ""].join("\n");
  }
}

// Inputs come by name. What is returned is the result; what is logged is a log, live.
export async function main({ title, orders }: { title: string; orders: Order[] }): Promise<object> {
  console.log(`${title}: ${orders.length} orders`);
  const ledger = new Ledger(title);
  for (const order of orders) {
    await sleep(200); // Work that takes a while: watch the log grow.
    console.log(`  order ${order.id}: ${order.customer} ${order.amount.toFixed(2)} (${order.status})`);
    ledger.add(order);
  }

  // A file left in the working directory becomes an artifact.
  await writeFile("report.md", ledger.toMarkdown());

  return { title: ledger.title, paid: ledger.paid, total: ledger.total };
}
