'use strict';

/**
 * From the user's source to code that V8 runs. Lives in the worker's own realm.
 *
 * The main source becomes the body of a function, because there `return` at the top level and inputs as variables mean
 * what users expect, and an async one where it awaits. JavaScript without import and export goes there as it is;
 * everything else through swc, which makes CommonJS of it. swc knows no `return` at the top level of a module, so it
 * sees a call there and the `return` comes back afterwards. Lines stay where they are; columns are counted back.
 */

const { readSourceMap, transform } = require('host');
const { edit, undo, chain } = require('./positions.js');
const { BadSource, characterColumn, survey } = require('./source.js');

const MODULE_PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname'];
/** Names that CommonJS out of swc needs for itself. */
const NEEDED_BY_SWC = new Set(['exports', 'require', 'module']);

/** What the user's files are called in stacks and reports, by the file name that V8 knows, with the way back. */
const compiled = new Map();

const TYPESCRIPT_FILE = /\.[mc]?ts$/;

/** Mistakes in functions that swc adds: the name of one, what it says, and what it should say on the same line. */
const MENDS = [
  // A class decorator may have sealed its class.
  [
    '_apply_decs_2203_r',
    'return Object.defineProperty(Class, Symbol.metadata',
    'return !Object.isExtensible(Class) ? Class : Object.defineProperty(Class, Symbol.metadata',
  ],
  // What it declares has another name.
  ['_ts_dispose_resources', 'new _SuppressedError(', 'new SuppressedError('],
];

const mend = (code) =>
  MENDS.reduce((mended, [name, wrong, right]) => {
    const start = `\n${mended}`.indexOf(`\nfunction ${name}(`);
    return start < 0 ? mended : mended.slice(0, start) + mended.slice(start).replace(wrong, right);
  }, code);

/** Runs swc. Throws BadSource: the parser before it has accepted what swc refuses. `legacy`: see `survey`. */
const runSwc = (text, file, { typescript, legacy }, module) => {
  const parser = typescript
    ? { syntax: 'typescript', decorators: true }
    : { syntax: 'ecmascript', explicitResourceManagement: true };
  const decorators = legacy ? { legacyDecorator: true } : { decoratorVersion: '2022-03' };
  try {
    const options = {
      filename: file,
      swcrc: false,
      configFile: false,
      sourceMaps: true,
      inlineSourcesContent: false,
      isModule: true,
      module,
      jsc: { target: 'esnext', parser, transform: decorators },
    };
    const { code, map } = transform(text, JSON.stringify(options));
    return { code: mend(code), map };
  } catch (error) {
    throw swcRefusal(String(error.message), text, file);
  }
};

/** swc's message is a drawing: the text after a cross, the line before a bar, and carets under the place. */
const swcRefusal = (drawing, text, file) => {
  const lines = drawing.replace(/\u001b\[[\d;]*m/g, '').split('\n');
  const message =
    lines.find((line) => /^\s*[x×] /u.test(line))?.replace(/^\s*[x×] /u, '') ?? 'the code does not compile';
  const carets = lines.findIndex((line) => /^\s*[:·]\s+[\^─┬]/u.test(line));
  const numbered = carets > 0 ? /^(\s*(\d+) [|│] )/u.exec(lines[carets - 1]) : null;
  if (!numbered) return new BadSource(`SyntaxError: ${message}`, file, 0, 0);
  const column = lines[carets].search(/[\^─┬]/u) - numbered[1].length;
  return new BadSource(
    `SyntaxError: ${message}`,
    file,
    Number(numbered[2]),
    characterColumn(text, numbered[2] - 1, column),
  );
};

/** A function from places in swc's output to places in its input. Reads the map when it is first asked. */
const throughMap = (map) => {
  let find = null;
  return (place) => {
    find ??= readSourceMap(map);
    const { originalLine, originalColumn } = find(place[0], place[1]);
    return originalLine === undefined ? null : [originalLine, originalColumn];
  };
};

/** A name like `base` that the text does not contain. */
const freshName = (base, text) => {
  let name = base;
  while (text.includes(name)) name += '_';
  return name;
};

/** V8 takes neither of these inside a function. */
const normalize = (text) => text.replace(/^\ufeff/, '').replace(/^#!/, '//');

/**
 * The main source as the text of a function. Its parameters are those of `own`, then what takes the place of a
 * top-level return, of import(), of import.meta, and what is told how to find main; then the `variables`.
 *
 * `choose` decides from the survey what becomes of the inputs: it returns the names of those that are variables.
 */
const compileMain = (source, path, file, typescript, choose) => {
  const text = normalize(source);
  const found = survey(text, file, typescript);
  const swc = typescript || found.module;
  const taken = swc && found.module ? NEEDED_BY_SWC : new Set();
  const variables = choose(found, taken).filter((name) => !found.declared.has(name));
  const used = `${text}\n${variables.join('\n')}`;
  const names = {
    finish: freshName('$finish', used),
    dynamicImport: freshName('$import', used),
    meta: freshName('$meta', used),
    offerMain: freshName('$main', used),
  };
  const edits = [
    ...(found.last ? around(found.last, swc ? `${names.finish}((` : 'return (', swc ? '))' : ')') : []),
    ...found.dynamicImports.map((node) => ({ at: node.start, remove: 6, insert: names.dynamicImport })),
    ...found.metas.map((node) => ({ at: node.start, remove: node.end - node.start, insert: names.meta })),
    ...(swc ? found.returns.flatMap((node) => finishInstead(node, text, names.finish)) : []),
  ].sort((a, b) => a.at - b.at);
  let code = edit(text, edits);
  let locate = undo(text, edits);
  if (swc) {
    const module = { type: 'commonjs', importInterop: 'swc', ignoreDynamic: true };
    const output = runSwc(code, file, { typescript, legacy: found.legacy }, module);
    const returns = [];
    for (
      let at = output.code.indexOf(`${names.finish}(`);
      at >= 0;
      at = output.code.indexOf(`${names.finish}(`, at + 1)
    ) {
      returns.push({ at, remove: 0, insert: 'return ' });
    }
    code = edit(output.code, returns);
    locate = chain(undo(output.code, returns), throughMap(output.map), locate);
  }
  const own = MODULE_PARAMETERS.filter(
    (name) =>
      !variables.includes(name) && (!found.declared.has(name) || (swc && name !== 'module' && NEEDED_BY_SWC.has(name))),
  );
  const parameters = [...own, ...Object.values(names), ...variables];
  const prefix =
    `(${found.awaits ? 'async ' : ''}function (${parameters.join(', ')}) {` +
    (swc || found.strict ? "'use strict';" : '') +
    (found.main && !found.main.exported ? `${names.offerMain}(() => main);` : '');
  const wrapped = [{ at: 0, remove: 0, insert: prefix }];
  compiled.set(path, { file, text, locate: chain(undo(code, wrapped), locate), imports: found.imports });
  return {
    code: `${prefix}${code}\n})`,
    found,
    own,
    variables,
    imports: found.imports
      .map(({ value }) => value)
      .filter((name) => code.includes(`require(${JSON.stringify(name)})`)),
  };
};

/** Text before and after the range. */
const around = ({ start, end }, before, after) => [
  { at: start, remove: 0, insert: before },
  { at: end, remove: 0, insert: after },
];

/** `return value` as `finish((value))`, for swc. */
const finishInstead = ({ start, end, argument }, text, finish) => {
  if (argument === null) return [{ at: start, remove: 6, insert: `${finish}()` }];
  return [
    { at: start, remove: 6, insert: `${finish}((` },
    { at: text[end - 1] === ';' ? end - 1 : end, remove: 0, insert: '))' },
  ];
};

/**
 * One of the request's `files` for Node's own loader: its text and format. CommonJS, so that files may mix both ways
 * of importing and be required; an ES module only where it awaits at the top level.
 */
const compileFile = (source, path, file) => {
  const typescript = TYPESCRIPT_FILE.test(path);
  const text = normalize(source);
  const plain = !typescript && !/\b(?:import|export|await)\b/.test(text);
  const found = plain ? null : survey(text, file, typescript);
  if (
    plain ||
    (!typescript && !found.module && !found.awaits && found.dynamicImports.length + found.metas.length === 0)
  ) {
    compiled.set(path, { file, text, locate: (place) => place, imports: [] });
    return { format: 'commonjs', source: text };
  }
  const module = found.awaits
    ? { type: 'es6' }
    : { type: 'commonjs', importInterop: 'swc', exportInteropAnnotation: true };
  const { code, map } = runSwc(text, file, { typescript, legacy: found.legacy }, module);
  compiled.set(path, { file, text, locate: throughMap(map), imports: found.imports });
  return { format: found.awaits ? 'module' : 'commonjs', source: code };
};

/**
 * Where line and column (from 1) of a file that V8 names were in the user's source; null for files that are not theirs.
 */
const locateIn = (path, line, column) => {
  const known = compiled.get(path);
  if (!known) return null;
  const place = known.locate([line - 1, column - 1]);
  if (!place) return { file: known.file, line: 0, column: 0 };
  return { file: known.file, line: place[0] + 1, column: characterColumn(known.text, place[0], place[1]) };
};

/** Where the module `name` is imported, in the first source that does so. */
const locateImport = (name) => {
  for (const { file, text, imports } of compiled.values()) {
    const { line, column } = imports.find(({ value }) => value === name)?.loc.start ?? {};
    if (line) return { file, line, column: characterColumn(text, line - 1, column) };
  }
  return { file: '', line: 0, column: 0 };
};

/** Forgets the sources of a warm-up. */
const forget = () => compiled.clear();

module.exports = {
  compileFile,
  compileMain,
  compiledPaths: () => [...compiled.keys()],
  forget,
  locateImport,
  locateIn,
};
