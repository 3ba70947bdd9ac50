'use strict';

/** How main takes its inputs. Lives in the worker's own realm; the proto's `Entry` is the specification. */

/** Thrown when there is no main, or when its parameters do not fit the inputs. */
class EntryNotFound extends Error {
  constructor(message, hint = '') {
    super(message);
    this.hint = hint;
  }
}

const IDENTIFIER = /^[\p{ID_Start}$_][\p{ID_Continue}$\u200c\u200d]*$/u;
const RESERVED = new Set(
  (
    'arguments await break case catch class const continue debugger default delete do else enum eval export extends' +
    ' false finally for function if implements import in instanceof interface let new null package private protected' +
    ' public return static super switch this throw true try typeof var void while with yield'
  ).split(' '),
);

/** Checks that all inputs of a script can be variables. Throws EntryNotFound. */
const checkVariables = (names, taken) => {
  const wrong = names.filter((name) => !IDENTIFIER.test(name) || RESERVED.has(name) || taken.has(name));
  if (wrong.length === 0) return;
  throw new EntryNotFound(
    `${list(wrong)} cannot be ${wrong.length === 1 ? 'a variable' : 'variables'} of a script`,
    'Rename the input, or take all inputs as one object with function main(args) { … }.',
  );
};

/** How code with this survey is run: 'script', 'args' or 'named'. Throws EntryNotFound. */
const chooseStyle = (entry, { main, callsMain, returns }, inputNames) => {
  if (entry === 'script') return 'script';
  if (entry === 'detect') {
    if (!main || callsMain || returns.length > 0) return 'script';
    return takesArgs(main.params, inputNames) ? 'args' : 'named';
  }
  if (!main)
    throw new EntryNotFound('the code has no function main', 'Define function main(args) { … } at the top level.');
  return entry === 'main_args' ? 'args' : 'named';
};

const nameOf = (param) => (param.type === 'AssignmentPattern' ? param.left : param);

const withoutThis = (params) => params.filter((param) => param.name !== 'this');

/** True for main(args), unless `args` is an input. */
const takesArgs = (params, inputNames) => {
  if (!params) return false;
  const named = withoutThis(params);
  return named.length === 1 && nameOf(named[0]).name === 'args' && !inputNames.includes('args');
};

/**
 * The arguments that give the inputs by name. Throws EntryNotFound naming what is missing and what is unexpected.
 * `params` are syntax nodes; null when a native or bound function hides them: it gets one object.
 */
const bindByName = (params, inputs) => {
  const names = Object.keys(inputs);
  if (params === null) return [inputs];
  const wanted = withoutThis(params);
  if (wanted.length === 1 && nameOf(wanted[0]).type === 'ObjectPattern') {
    checkPattern(nameOf(wanted[0]), names);
    return [inputs];
  }
  const plain = wanted.filter((param) => nameOf(param).type === 'Identifier');
  const rest = wanted.filter((param) => param.type === 'RestElement');
  const takes = `main(${wanted.map(describeParam).join(', ')})`;
  if (plain.length + rest.length < wanted.length) {
    throw new EntryNotFound(
      `${takes} has a parameter without a name`,
      'Take the inputs as main(a, b) or main({ a, b }).',
    );
  }
  const known = plain.map((param) => nameOf(param).name);
  const required = plain.filter((param) => param.type === 'Identifier' && !param.optional).map((param) => param.name);
  compare(takes, required, known, names);
  return known.map((name) => (Object.hasOwn(inputs, name) ? inputs[name] : undefined));
};

const checkPattern = (pattern, names) => {
  const required = [];
  const known = [];
  let open = false;
  for (const property of pattern.properties) {
    if (property.type === 'RestElement' || property.computed) {
      open = true;
      continue;
    }
    const name = property.key.name ?? `${property.key.value}`;
    known.push(name);
    if (property.value.type !== 'AssignmentPattern') required.push(name);
  }
  compare(`main(${describeParam(pattern)})`, required, open ? [...known, ...names] : known, names);
};

const compare = (takes, required, known, names) => {
  const missing = required.filter((name) => !names.includes(name));
  const unexpected = names.filter((name) => !known.includes(name));
  if (missing.length === 0 && unexpected.length === 0) return;
  const parts = [];
  if (missing.length > 0) parts.push(`missing ${list(missing)}`);
  if (unexpected.length > 0) parts.push(`unexpected ${list(unexpected)}`);
  throw new EntryNotFound(
    `${takes} does not fit the inputs: ${parts.join('; ')}`,
    'Inputs are matched to parameters by name. main(args) takes all of them as one object.',
  );
};

const describeParam = (param) => {
  if (param.type === 'AssignmentPattern') return `${describeParam(param.left)} = …`;
  if (param.type === 'RestElement') return `...${describeParam(param.argument)}`;
  if (param.type === 'Identifier') return param.name;
  if (param.type !== 'ObjectPattern') return '[…]';
  const parts = param.properties.map((property) => {
    if (property.type === 'RestElement') return `...${property.argument.name ?? ''}`;
    if (property.computed) return '[…]';
    const name = property.key.name ?? JSON.stringify(property.key.value);
    return property.value.type === 'AssignmentPattern' ? `${name} = …` : name;
  });
  return parts.length === 0 ? '{}' : `{ ${parts.join(', ')} }`;
};

const MOST_NAMED = 20;
const LONGEST_NAME = 100;

/** Names for a message, cut where there are many or long ones. */
const list = (names) => {
  const shown = names.slice(0, MOST_NAMED).map((name) => {
    const short = name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME)}…` : name;
    return IDENTIFIER.test(short) ? short : JSON.stringify(short);
  });
  const more = names.length - shown.length;
  return more > 0 ? `${shown.join(', ')} and ${more} more` : shown.join(', ');
};

module.exports = { EntryNotFound, bindByName, checkVariables, chooseStyle, takesArgs };
