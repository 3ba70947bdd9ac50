'use strict';

/**
 * The result as JSON text. Lives in the worker's own realm.
 *
 * JSON.stringify drops a Map, turns NaN into null and calls every getter of a value without saying where it was; here
 * what JSON cannot carry is refused with its path. One pass, so that a getter cannot answer twice. The answers:
 *
 * - null, booleans, strings, arrays, plain objects in key order; objects of classes by their own enumerable properties.
 * - Finite numbers (-0 is 0); bigint as an integer of all its digits; boxed primitives as what they hold.
 * - toJSON where there is one, so Date and URL are strings.
 * - undefined: null at the top and in arrays, left out of objects.
 * - A string at the top that holds a JSON object or array is that document, its digits untouched.
 */

const { bytesOf, types, userObjectPrototype } = require('host');
const { cut } = require('./channel.js');

const DEEPEST = 1000;
const PIECE = 256 * 1024;
const LONGEST_PATH = 500;
/** Of a longer path only so many steps of each end are told. */
const STEPS_AT_AN_END = 20;
const PLAIN_NAME = /^[A-Za-z_$][\w$]*$/;

/** What JSON cannot carry, as type test, name and what to do instead; the first that fits. */
const REFUSED = [
  [types.isMap, 'Map', 'Return Object.fromEntries(map) or [...map].'],
  [types.isSet, 'Set', 'Return [...set].'],
  [types.isWeakMap, 'WeakMap', ''],
  [types.isWeakSet, 'WeakSet', ''],
  [types.isRegExp, 'RegExp', 'Return regexp.source.'],
  [types.isNativeError, 'Error', 'Return error.message, or throw it.'],
  [types.isPromise, 'Promise', 'Await it first, or use await Promise.all(...) for a list.'],
  [types.isGeneratorObject, 'Generator', 'Return [...generator], or await Array.fromAsync(generator).'],
  [(value) => typeof value.next === 'function' && Symbol.iterator in value, 'Iterator', 'Return [...iterator].'],
  [types.isSymbolObject, 'Symbol', ''],
  [types.isExternal, 'External', ''],
];

/** Thrown when the result cannot be JSON. `reason` says what is where. */
class NotSerializable extends Error {
  constructor(reason, hint) {
    super(reason);
    this.hint = hint;
  }
}

/** Writes one value. Its state is the text that is not in `pieces` yet, and the way from the result to where it is. */
class Writer {
  pieces = [];
  #text = '';
  #keys = [];
  #parents = [];

  flush() {
    if (this.#text === '') return;
    for (const piece of this.#text.length > PIECE ? cut(this.#text) : [bytesOf(this.#text)]) this.pieces.push(piece);
    this.#text = '';
  }

  write(value) {
    if (this.#text.length > PIECE) this.flush();
    switch (typeof value) {
      case 'string':
        this.#text += JSON.stringify(value);
        return;
      case 'number':
        if (!Number.isFinite(value)) this.#refuse(`${value}`, 'JSON has no such number; return null or a string.');
        this.#text += `${value}`;
        return;
      case 'boolean':
      case 'bigint':
        this.#text += `${value}`;
        return;
      case 'undefined':
        this.#text += 'null';
        return;
      case 'object':
        if (value === null) this.#text += 'null';
        else this.#writeObject(value);
        return;
      default:
        this.#refuse(
          typeof value === 'symbol' ? 'a symbol' : 'a function',
          typeof value === 'symbol' ? '' : 'Did you mean to call it?',
        );
    }
  }

  #writeObject(value) {
    const isArray = Array.isArray(value);
    const isPlain = isArray || Object.getPrototypeOf(value) === userObjectPrototype;
    if (!isPlain) this.#checkContent(value);
    const toJSON = value.toJSON;
    if (typeof toJSON === 'function') {
      const key = this.#keys.length === 0 ? '' : `${this.#keys[this.#keys.length - 1]}`;
      this.#enter(value);
      this.#writeConverted(Reflect.apply(toJSON, value, [key]));
      this.#parents.pop();
      return;
    }
    if (!isPlain && types.isBoxedPrimitive(value) && !types.isSymbolObject(value)) return this.write(unbox(value));
    if (!isPlain) this.#checkType(value);
    this.#enter(value);
    if (isArray) this.#writeArray(value);
    else this.#writeProperties(value);
    this.#parents.pop();
  }

  /** What toJSON gave is written as it is: its own toJSON is not asked, as JSON.stringify does it. */
  #writeConverted(value) {
    if (value === null || typeof value !== 'object') return this.write(value);
    if (types.isBoxedPrimitive(value) && !types.isSymbolObject(value)) return this.write(unbox(value));
    if (Array.isArray(value)) return this.#writeArray(value);
    this.#checkContent(value);
    this.#checkType(value);
    return this.#writeProperties(value);
  }

  /** Refuses what has a toJSON that hides how little JSON can say about it. */
  #checkContent(value) {
    if (types.isArrayBufferView(value) || types.isAnyArrayBuffer(value)) {
      this.#refuse(className(value), "Return Buffer.from(bytes).toString('base64'), or write it to a file.");
    }
    if (types.isDate(value) && Number.isNaN(Reflect.apply(Date.prototype.getTime, value, []))) {
      this.#refuse('an invalid Date', '');
    }
  }

  #checkType(value) {
    for (const [is, name, hint] of REFUSED) if (is(value)) this.#refuse(name, hint);
  }

  #enter(value) {
    const parent = this.#parents.indexOf(value);
    if (parent >= 0) {
      throw new NotSerializable(`${pathOf(this.#keys)} refers back to ${pathOf(this.#keys.slice(0, parent))}`, '');
    }
    if (this.#parents.length === DEEPEST) {
      throw new NotSerializable(`${pathOf(this.#keys)} is nested deeper than ${DEEPEST}`, 'Return a flatter value.');
    }
    this.#parents.push(value);
  }

  #writeArray(value) {
    const length = value.length;
    const depth = this.#keys.length;
    this.#text += '[';
    for (let index = 0; index < length; index += 1) {
      if (index > 0) this.#text += ',';
      this.#keys[depth] = index;
      this.write(value[index]);
    }
    this.#keys.length = depth;
    this.#text += ']';
  }

  #writeProperties(value) {
    const depth = this.#keys.length;
    let separator = '{';
    for (const key of Object.keys(value)) {
      const property = value[key];
      if (property === undefined) continue;
      this.#keys[depth] = key;
      this.#text += `${separator}${JSON.stringify(key)}:`;
      this.write(property);
      separator = ',';
    }
    this.#keys.length = depth;
    this.#text += separator === '{' ? '{}' : '}';
  }

  #refuse(what, hint) {
    throw new NotSerializable(`${pathOf(this.#keys)} is ${what}`, hint);
  }
}

const pathOf = (keys) => {
  let path = 'result';
  const isLong = keys.length > 2 * STEPS_AT_AN_END;
  const steps = isLong ? [...keys.slice(0, STEPS_AT_AN_END), null, ...keys.slice(-STEPS_AT_AN_END)] : keys;
  for (const key of steps) {
    if (key === null) path += '.…';
    else if (typeof key === 'number') path += `[${key}]`;
    else path += PLAIN_NAME.test(key) ? `.${key}` : `[${JSON.stringify(key)}]`;
    if (path.length > LONGEST_PATH) return `${path.slice(0, LONGEST_PATH)}…`;
  }
  return path;
};

const unbox = (value) => {
  if (types.isNumberObject(value)) return Reflect.apply(Number.prototype.valueOf, value, []);
  if (types.isStringObject(value)) return Reflect.apply(String.prototype.valueOf, value, []);
  if (types.isBooleanObject(value)) return Reflect.apply(Boolean.prototype.valueOf, value, []);
  return Reflect.apply(BigInt.prototype.valueOf, value, []);
};

/** The name of a value's class, for messages. */
const className = (value) => {
  try {
    const name = value.constructor.name;
    return typeof name === 'string' && PLAIN_NAME.test(name) ? name : 'object';
  } catch {
    return 'object';
  }
};

const LONE_SURROGATE = /\p{Surrogate}/gu;

/** The text itself when it is a JSON object or array, with lone surrogates escaped; else null. */
const asDocument = (text) => {
  if (!/^[ \t\r\n]*[[{]/.test(text)) return null;
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  if (depthOf(text) > DEEPEST) {
    throw new NotSerializable(`result is a JSON document that is nested deeper than ${DEEPEST}`, '');
  }
  return text.isWellFormed() ? text : text.replace(LONE_SURROGATE, (unit) => `\\u${unit.charCodeAt(0).toString(16)}`);
};

/** How deep valid JSON text is nested. */
const depthOf = (text) => {
  let depth = 0;
  let deepest = 0;
  for (let index = 0; index < text.length; index += 1) {
    const unit = text.charCodeAt(index);
    if (unit === 0x22) {
      for (index += 1; text.charCodeAt(index) !== 0x22; index += 1) if (text.charCodeAt(index) === 0x5c) index += 1;
    } else if (unit === 0x5b || unit === 0x7b) {
      depth += 1;
      if (depth > deepest) deepest = depth;
    } else if (unit === 0x5d || unit === 0x7d) {
      depth -= 1;
    }
  }
  return deepest;
};

/** The result as pieces of UTF-8, each small enough for a frame. Throws NotSerializable, or what user code throws. */
const serialize = (value) => {
  if (typeof value === 'string') {
    const document = asDocument(value);
    if (document !== null) return cut(document);
  }
  const writer = new Writer();
  writer.write(value);
  writer.flush();
  return writer.pieces;
};

module.exports = { NotSerializable, serialize };
