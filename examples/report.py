"""Sums up orders by customer. Try it: belljar run examples/report.py --inputs examples/inputs.json --save out"""

import csv
import time
from collections import defaultdict
from pathlib import Path


def main(title: str, orders: list[dict]) -> dict:
    """Inputs come by name. What is returned is the result; what is printed is a log, live."""
    print(f"{title}: {len(orders)} orders", flush=True)
    totals: dict[str, float] = defaultdict(float)
    for order in orders:
        time.sleep(0.2)  # Work that takes a while: watch the log grow.
        print(f"  order {order['id']}: {order['customer']} {order['amount']:.2f} ({order['status']})", flush=True)
        if order["status"] == "paid":
            totals[order["customer"]] += order["amount"]

    # A file left in the working directory becomes an artifact.
    with Path("report.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["customer", "paid"])
        writer.writerows(sorted(totals.items()))

    return {"title": title, "paid": dict(totals), "total": sum(totals.values())}
