interface Inputs {
  a: number;
  b: number;
}

enum Level {
  Low = 1,
  High = 10,
}

type Pair<T> = readonly [T, T];

function logged<This, Args extends unknown[], Result>(
  method: (this: This, ...args: Args) => Result,
  context: ClassMethodDecoratorContext,
) {
  return function (this: This, ...args: Args): Result {
    calls.push(String(context.name));
    return method.apply(this, args);
  };
}

const calls: string[] = [];

abstract class Shape {
  constructor(
    public readonly name: string,
    protected scale: number = 1,
  ) {}
  abstract area(): number;
}

class Square extends Shape {
  constructor(private side: number) {
    super("square");
  }
  @logged
  area(): number {
    return this.side ** 2 * this.scale;
  }
}

namespace Sums {
  export const add = ([x, y]: Pair<number>): number => x + y;
}

const defaults = { level: Level.High } satisfies Record<string, number>;

export function main({ a, b }: Inputs) {
  const square = new Square(a + b);
  return { area: square.area(), sum: Sums.add([a, b]), level: defaults.level, calls };
}
