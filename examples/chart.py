"""A workbook and a chart of the same orders, with packages that are there without a word.

Try it: belljar run examples/chart.py --inputs examples/inputs.json --save out
"""

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image


def main(title: str, orders: list[dict]) -> dict:
    frame = pd.DataFrame(orders)
    paid = frame[frame.status == "paid"].groupby("customer").amount.sum().sort_values(ascending=False)
    print(paid.to_string())

    paid.to_excel("paid.xlsx")
    paid.plot.bar(title=title)
    plt.tight_layout()
    plt.savefig("paid.png")
    Image.open("paid.png").convert("RGB").resize((320, 240)).save("preview.jpg")

    return paid.round(2).to_dict()
