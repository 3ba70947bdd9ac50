'use strict';

/**
 * One execution: compile, run, call main, write the result, let the event loop run dry, report, exit. Lives in the
 * worker's own realm.
 *
 * Its state is what the code has given, and how the execution has ended, once it has: whatever comes first counts, and
 * it is told once.
 */

const host = require('host');
const { sendOutcome, tellLost } = require('./channel.js');
const { asBadSource, describe, isOurs } = require('./failure.js');
const { compileMain, forget } = require('./compile.js');
const { EntryNotFound, bindByName, checkVariables, chooseStyle, takesArgs } = require('./entry.js');
const { NotSerializable, serialize } = require('./json.js');
const { characterColumn, parametersOf } = require('./source.js');

const { clock, emitExit, exitCode, nextTurn, parseJson, reallyExit, runCode, settle, underWay, user, whileAlive } = host;

/** So long may what user code has begun go on when the result is there. */
const LEAVE_MS = 1000;
/** So long before its time limit an execution that has its result is over in any case. */
const RESERVE_MS = 200;
const MOST_LEFT = 5;

/** Waits for a value of user code; in a box, because a promise of ours would ask the value for its `then` again. */
const settled = (value) => new Promise((resolve, reject) => settle(value, (result) => resolve({ result }), reject));

/** The kinds of what is under way; never none, since work of zlib and crypto has no name. */
const namesOfLeft = () => {
  const names = new Set();
  const resources = underWay();
  for (let index = 0; index < resources.length && names.size < MOST_LEFT; index += 1) {
    if (/^[A-Za-z]{1,40}$/.test(resources[index])) names.add(resources[index]);
  }
  return names.size > 0 ? [...names] : ['work'];
};

/** What user code left in process.exitCode, as the system will see it. */
const leftExitCode = () => {
  try {
    const code = exitCode();
    return Number.isInteger(code) ? code & 0xff : 0;
  } catch {
    return 0;
  }
};

class Execution {
  #given = null;
  #outcome = null;
  #left = false;
  #mainPlace = {};
  #waitsFor = 'the script';
  #endsWithExpression = false;

  constructor(job, path, typescript) {
    this.job = job;
    this.path = path;
    this.typescript = typescript;
  }

  /** Runs all of it. Does not come back. */
  async run() {
    const began = clock();
    try {
      const { result } = await this.evaluate();
      this.#given = { pieces: serialize(result), report: { ok: true }, code: 0 };
      // As under node what has been begun goes on: a stream is written, a rejection that nobody has handled is told.
      const left = (this.job.timeout ?? Infinity) * 1000 - (clock() - began) - RESERVE_MS;
      if (!host.watchClosely()) nextTurn(() => this.#end(this.#given));
      whileAlive(Math.max(1, Math.min(LEAVE_MS, left)), () => this.#leave());
    } catch (thrown) {
      this.fail(thrown);
    }
  }

  /** Compiles and calls; the settled result in a box. Throws what user code throws, and our own refusals. */
  async evaluate() {
    const { code, entry, inputs: inputsJson, main_file: file } = this.job;
    const inputs = parseJson(inputsJson);
    const names = Object.keys(inputs);
    let style = 'script';
    const unit = compileMain(code, this.path, file, this.typescript, (found, taken) => {
      if (found.main) {
        const { line, column } = found.main.place.loc.start;
        this.#mainPlace = { file, line, column: characterColumn(code, line - 1, column) };
      }
      style = chooseStyle(entry, found, names);
      if (style !== 'script') return [];
      checkVariables(
        names.filter((name) => !found.declared.has(name)),
        taken,
      );
      return names;
    });
    const { main } = unit.found;
    const body = this.#load(unit.code);
    const scope = user.makeScope(this.path, style === 'script');
    await settled(scope.preload(unit.imports));
    const values = [
      ...unit.own.map((name) => scope.names[name]),
      scope.finish,
      scope.importModule,
      scope.meta,
      scope.offerMain,
      ...unit.variables.map((name) => inputs[name]),
    ];
    const end = await settled(Reflect.apply(body, scope.names.module.exports, values));
    this.#endsWithExpression = style === 'script' && unit.found.returns.length === 0;
    if (style === 'script') return end;

    const found = main.exported ? scope.names.module.exports?.main : this.#getMain(scope);
    if (typeof found !== 'function')
      throw new EntryNotFound(`main is ${found === null ? 'null' : typeof found}, not a function`);
    const params = main.params ?? parametersOf(Reflect.apply(Function.prototype.toString, found, []));
    if (entry === 'detect' && takesArgs(params, names)) style = 'args';
    const given = style === 'args' ? [inputs] : bindByName(params, inputs);
    this.#waitsFor = 'main';
    return settled(Reflect.apply(found, main.exported ? scope.names.module.exports : undefined, given));
  }

  /** The function that the source has become. V8 may still refuse it. */
  #load(code) {
    try {
      return runCode(code, this.path);
    } catch (error) {
      throw asBadSource(error, this.path);
    }
  }

  #getMain(scope) {
    try {
      return scope.getMain();
    } catch {
      throw new EntryNotFound('main has no value when the code has run', 'A top-level return comes before it.');
    }
  }

  /** Ends with an error, unless it has ended already. */
  fail(thrown) {
    const error = describe(thrown, this.#mainPlace, this.job.network);
    if (isOurs(thrown, NotSerializable) && error.hint === '' && this.#endsWithExpression) {
      error.hint = 'The value of the last expression is the result; end the script with null when it has none.';
    }
    this.#end({ pieces: [], report: { ok: false, error }, code: 1 });
  }

  /** Ends with the result, and tells what is not done. */
  #leave() {
    this.#end({ ...this.#given, report: { ok: true, left: namesOfLeft() } });
  }

  /** The event loop has run dry. */
  starve() {
    if (this.#given) return this.#end(this.#given);
    const subject = this.#waitsFor === 'main' ? 'main() returned' : 'the script waits for';
    const error = describe(null, {});
    error.message = `${subject} a promise that never settles`;
    error.hint = 'Nothing is left that could settle it: no timer, no file, no connection.';
    this.#end({ pieces: [], report: { ok: false, error }, code: 1 });
  }

  /** User code called process.exit, or an exit handler did while the execution was ending. */
  exit(code) {
    if (this.#left) return;
    this.#left = true;
    const outcome = this.#outcome ?? this.#given ?? { pieces: [], report: { ok: true }, code: 0 };
    try {
      if (outcome.code !== 0 || code === 0) sendOutcome(outcome.pieces, outcome.report);
    } catch {
      // A result that is lost is no success. When it is the agent that is gone, nobody reads this.
      tellLost();
      reallyExit(1);
    }
    reallyExit(outcome.code || code);
  }

  #end(outcome) {
    if (this.#outcome) return;
    this.#outcome = outcome;
    try {
      emitExit(outcome.code);
    } catch (thrown) {
      if (outcome.code === 0)
        this.#outcome = { pieces: [], report: { ok: false, error: describe(thrown, {}, this.job.network) }, code: 1 };
    }
    this.exit(leftExitCode());
  }
}

const SAMPLES = {
  javascript: [
    "const { join } = require('node:path');\nconst main = async ({ a, b = 2 }) => ({ a, b, j: join('x', 'y') });\n",
    'let sum = 0;\nfor (const n of [1, a]) sum += n;\nsum;\n',
  ],
  typescript: [
    "import * as path from 'node:path';\nenum E { A = 1 }\ninterface P { a: number }\n" +
      'export async function main(args: P): Promise<object> { return { a: args.a + E.A, p: path.sep }; }\n',
    'const sum: number = [1, a].reduce((x: number, y: number) => x + y);\nsum;\n',
  ],
};

/** Runs the path of a request, so that the first real one finds the code of the parsers loaded and compiled. */
const warmUp = async (language, path) => {
  for (const code of SAMPLES[language]) {
    const job = { code, entry: 'detect', inputs: '{"a": 1}', main_file: 'main' };
    const { result } = await new Execution(job, path, language === 'typescript').evaluate();
    serialize(result);
    whileAlive(LEAVE_MS, () => {})();
    namesOfLeft();
    await new Promise((resolve) => nextTurn(resolve));
    emitExit(0);
    leftExitCode();
    forget();
  }
};

module.exports = { Execution, warmUp };
