'use strict';

/**
 * What a source says about itself: its syntax errors, how it means to be called, and where our edits go. Lives in the
 * worker's own realm. Nothing here runs user code.
 */

const { parserPath } = require('host');
const { parse, parseExpression } = require(parserPath);

/** Thrown for a source that does not parse. `line` and `column` count from 1, in characters. */
class BadSource extends Error {
  constructor(message, file, line, column) {
    super(message);
    this.file = file;
    this.line = line;
    this.column = column;
  }
}

const OPTIONS = {
  sourceType: 'unambiguous',
  allowAwaitOutsideFunction: true,
  allowReturnOutsideFunction: true,
  allowNewTargetOutsideFunction: true,
  allowUndeclaredExports: true,
  attachComment: false,
};
const TYPESCRIPT = { ...OPTIONS, plugins: ['typescript', 'decorators', 'decoratorAutoAccessors'] };
/** As `experimentalDecorators` of tsc. */
const LEGACY = { ...OPTIONS, plugins: ['typescript', 'decorators-legacy', 'decoratorAutoAccessors'] };

/** Characters before UTF-16 unit `column` (from 0) of a line (from 0), plus one: an emoji is one character. */
const characterColumn = (text, line, column) => {
  const content = text.split(/\r\n|[\n\r\u2028\u2029]/, line + 1)[line] ?? '';
  return [...content.slice(0, column)].length + 1;
};

/** The syntax tree, as Babel makes it. Throws BadSource. */
const parseSource = (text, file, options) => {
  try {
    return { program: parse(text, options).program, legacy: options === LEGACY };
  } catch (error) {
    // Code that decorates parameters is written for the decorators that came before the standard's: those cannot.
    if (error.reasonCode === 'UnsupportedParameterDecorator') return parseSource(text, file, LEGACY);
    if (error instanceof RangeError) throw new BadSource('SyntaxError: the code is nested too deeply', file, 0, 0);
    if (!error.loc) throw error;
    const message = error.message.replace(/ \(\d+:\d+\)$/, '').replace(/\s*\n\s*/g, ' ');
    const { line, column } = error.loc;
    throw new BadSource(`SyntaxError: ${message}`, file, line, characterColumn(text, line - 1, column));
  }
};

const FUNCTIONS = new Set([
  'FunctionDeclaration',
  'FunctionExpression',
  'ArrowFunctionExpression',
  'ObjectMethod',
  'ClassMethod',
  'ClassPrivateMethod',
  'ClassProperty',
  'ClassPrivateProperty',
  'ClassAccessorProperty',
  'StaticBlock',
  'TSModuleBlock',
]);
const CALLS = new Set(['CallExpression', 'OptionalCallExpression']);
const MODULE_SYNTAX = new Set([
  'ImportDeclaration',
  'ExportNamedDeclaration',
  'ExportDefaultDeclaration',
  'ExportAllDeclaration',
  'TSImportEqualsDeclaration',
  'TSExportAssignment',
]);
/** Statements of TypeScript that leave nothing behind. */
const ERASED = new Set(['EmptyStatement', 'TSInterfaceDeclaration', 'TSTypeAliasDeclaration', 'TSDeclareFunction']);
/** The usual ways to ask "am I the program itself?"; a call of main behind one is not made when we call main. */
const GUARD = /\brequire\s*\.\s*main\b|\bimport\s*\.\s*meta\b|\bprocess\s*\.\s*argv\b/;

/**
 * Visits the tree and notes what an execution has to know. Its state is what it has found, and the nodes it still has
 * to see.
 */
class Survey {
  returns = [];
  dynamicImports = [];
  metas = [];
  awaits = false;
  callsMain = false;

  #text;
  #waiting = [];

  constructor(text) {
    this.#text = text;
  }

  /** Visits all of the tree without recursion: a sum of 10,000 terms is 10,000 levels deep. */
  visit(root) {
    this.#waiting.push([root, true, true]);
    while (this.#waiting.length > 0) this.#look(...this.#waiting.pop());
    this.returns.sort((a, b) => a.start - b.start);
  }

  /**
   * `own`: not inside a function. `runs`: executed by the top-level code itself, also inside a function called in
   * place.
   */
  #look(node, own, runs) {
    const { type } = node;
    if (own) {
      if (type === 'ReturnStatement') this.returns.push(node);
      if (type === 'AwaitExpression' || (type === 'ForOfStatement' && node.await)) this.awaits = true;
      if (type === 'VariableDeclaration' && node.kind === 'await using') this.awaits = true;
    }
    if (type === 'Import') this.dynamicImports.push(node);
    if (type === 'MetaProperty' && node.meta.name === 'import') this.metas.push(node);
    if (runs && CALLS.has(type) && node.callee.type === 'Identifier' && node.callee.name === 'main')
      this.callsMain = true;
    if (FUNCTIONS.has(type)) own = runs = false;
    const guard = type === 'IfStatement' ? node.test : type === 'LogicalExpression' ? node.left : null;
    if (runs && guard !== null && GUARD.test(this.#text.slice(guard.start, guard.end))) runs = false;
    for (const key in node) {
      const child = node[key];
      if (child === null || typeof child !== 'object') continue;
      if (key === 'callee' && (child.type === 'ArrowFunctionExpression' || child.type === 'FunctionExpression')) {
        for (const param of child.params) this.#waiting.push([param, false, runs]);
        this.#waiting.push([child.body, false, runs]);
      } else if (Array.isArray(child)) {
        for (const item of child) if (typeof item?.type === 'string') this.#waiting.push([item, own, runs]);
      } else if (typeof child.type === 'string') this.#waiting.push([child, own, runs]);
    }
  }
}

/** The declaration inside `export …`, or the statement itself; null for `export {…}`. */
const declarationOf = (statement) =>
  statement.type === 'ExportNamedDeclaration' || statement.type === 'ExportDefaultDeclaration'
    ? statement.declaration
    : statement;

/** Adds the names that a pattern binds. */
const bindNames = (pattern, names) => {
  if (pattern === null) return;
  if (pattern.type === 'Identifier') names.add(pattern.name);
  else if (pattern.type === 'AssignmentPattern') bindNames(pattern.left, names);
  else if (pattern.type === 'RestElement') bindNames(pattern.argument, names);
  else if (pattern.type === 'ArrayPattern') for (const element of pattern.elements) bindNames(element, names);
  else if (pattern.type === 'ObjectPattern') {
    for (const property of pattern.properties) bindNames(property.value ?? property, names);
  }
};

/** Names that the top level declares other than with `var`, which may share its name with a parameter. */
const declaredNames = (body) => {
  const names = new Set();
  for (const statement of body) {
    if (statement.type === 'ImportDeclaration') for (const { local } of statement.specifiers) names.add(local.name);
    const declaration = declarationOf(statement);
    if (!declaration || declaration.declare) continue;
    if (declaration.type === 'VariableDeclaration') {
      if (declaration.kind !== 'var') for (const { id } of declaration.declarations) bindNames(id, names);
    } else if (declaration.id?.type === 'Identifier' && !ERASED.has(declaration.type)) names.add(declaration.id.name);
  }
  return names;
};

/** Without the TypeScript around an expression. */
const bare = (node) => {
  while (node?.type.startsWith('TS') && node.expression) node = node.expression;
  return node;
};

const isFunction = (node) =>
  node?.type === 'FunctionDeclaration' ||
  node?.type === 'FunctionExpression' ||
  node?.type === 'ArrowFunctionExpression' ||
  node?.type === 'ObjectMethod';

/** Expressions whose value can be called; `const main = 5` is just a variable. */
const MAY_BE_FUNCTION = new Set([
  'CallExpression',
  'OptionalCallExpression',
  'Identifier',
  'MemberExpression',
  'AwaitExpression',
  'ConditionalExpression',
  'LogicalExpression',
  'AssignmentExpression',
]);

const asMain = (node, place, exported) => {
  const value = bare(node);
  if (isFunction(value)) return { place, exported, params: value.params };
  return !value || MAY_BE_FUNCTION.has(value.type) ? { place, exported, params: null } : null;
};

/** `exports.main = …`, `module.exports = { main }` and the like. */
const assignedMain = (expression) => {
  if (expression.type !== 'AssignmentExpression' || expression.operator !== '=') return null;
  const { left, right } = expression;
  if (left.type === 'Identifier' && left.name === 'main') return asMain(right, left, false);
  if (left.type !== 'MemberExpression' || left.computed) return null;
  const target = left.property.name;
  if (target === 'main') return asMain(right, left.property, true);
  const value = bare(right);
  return target === 'exports' && value.type === 'ObjectExpression' ? memberMain(value) : null;
};

const memberMain = (object) => {
  for (const member of object.properties) {
    if (member.type === 'SpreadElement' || member.computed) continue;
    if ((member.key.name ?? member.key.value) === 'main') return asMain(member.value ?? member, member.key, true);
  }
  return null;
};

/** How the top level offers a `main`: a binding, or an export of that name. Null when it does not. */
const findMain = (body) => {
  let exported = null;
  for (const statement of body) {
    const declaration = declarationOf(statement);
    if (declaration?.type === 'FunctionDeclaration' && declaration.id?.name === 'main') {
      return asMain(declaration, declaration.id, false);
    }
    if (declaration?.type === 'VariableDeclaration' && !declaration.declare) {
      const found = declaration.declarations.find(({ id }) => id.name === 'main');
      if (found) return asMain(found.init, found.id, false);
    }
    if (statement.type === 'ExportNamedDeclaration' && statement.exportKind !== 'type') {
      const named = statement.specifiers.find((one) => (one.exported.name ?? one.exported.value) === 'main');
      if (named) exported ??= { place: named, exported: true, params: null };
    }
    if (statement.type === 'ExpressionStatement') exported ??= assignedMain(statement.expression);
    if (statement.type === 'TSExportAssignment' && statement.expression.type === 'ObjectExpression') {
      exported ??= memberMain(statement.expression);
    }
  }
  return exported;
};

/** The last statement, when it is an expression: its range without the semicolon. */
const lastExpression = (program, text) => {
  const body = program.body.filter((node) => !ERASED.has(node.type) && !node.declare);
  const last = body.length > 0 ? body[body.length - 1] : program.directives[program.directives.length - 1];
  if (last?.type !== 'ExpressionStatement' && last?.type !== 'Directive') return null;
  return { start: last.start, end: text[last.end - 1] === ';' ? last.end - 1 : last.end };
};

/** Everything about a source that decides how it is compiled and called. Throws BadSource. */
const survey = (text, file, typescript) => {
  const { program, legacy } = parseSource(text, file, typescript ? TYPESCRIPT : OPTIONS);
  const found = new Survey(text);
  found.visit(program);
  return {
    legacy,
    module: program.body.some((node) => MODULE_SYNTAX.has(node.type)),
    strict: program.sourceType === 'module' || program.directives.some(({ value }) => value.value === 'use strict'),
    awaits: found.awaits,
    returns: found.returns,
    dynamicImports: found.dynamicImports,
    metas: found.metas,
    callsMain: found.callsMain,
    main: findMain(program.body),
    declared: declaredNames(program.body),
    imports: program.body.filter((node) => node.type === 'ImportDeclaration').map((node) => node.source),
    last: lastExpression(program, text),
  };
};

/** The parameters of a function from what its toString gives; null when that is not its source. */
const parametersOf = (functionText) => {
  for (const text of [`(${functionText})`, `({${functionText}})`]) {
    try {
      const node = parseExpression(text);
      return (isFunction(node) ? node : node.properties[0]).params ?? null;
    } catch {
      // Not of this form: a method's text is no expression by itself.
    }
  }
  return null;
};

module.exports = { BadSource, characterColumn, parametersOf, survey };
