'use strict';

/**
 * What went wrong, as the error of a report: the user's own places and frames, nothing of ours. Lives in the worker's
 * own realm. What user code throws is hostile: reading it may run its code, which may throw again or print.
 */

const { byteLengthOf, importerPath, inspect, types, workerFolder } = require('host');
const { compiledPaths, locateImport, locateIn } = require('./compile.js');
const { EntryNotFound } = require('./entry.js');
const { NotSerializable } = require('./json.js');
const { BadSource } = require('./source.js');

const LONGEST_MESSAGE = 16 * 1024;
const LONGEST_TRACEBACK = 64 * 1024;
const LONGEST_ERROR = 250 * 1024;
const MOST_CAUSES = 5;
const NETWORK_CODES = new Set(['ENOTFOUND', 'EAI_AGAIN', 'ENETUNREACH', 'EHOSTUNREACH', 'ECONNREFUSED', 'ENETDOWN']);

/** Errors that our loader threw for a source in `files`, so that they are told as what they are. */
const badSources = new WeakMap();

/** At most so many bytes of UTF-8, with a mark where something is cut. */
const clip = (text, most) => {
  if (text.length <= most && byteLengthOf(text) <= most) return text.toWellFormed();
  const room = most - 3;
  const start = text.slice(0, room);
  return `${(byteLengthOf(start) <= room ? start : start.slice(0, Math.floor(room / 3))).toWellFormed()}…`;
};

const attempt = (read, otherwise) => {
  try {
    return read();
  } catch {
    return otherwise;
  }
};

const read = (object, key) => attempt(() => object[key], undefined);

const readText = (object, key) => {
  const value = read(object, key);
  return typeof value === 'string' ? value : '';
};

const isObject = (value) => (typeof value === 'object' && value !== null) || typeof value === 'function';

const isError = (value) => types.isNativeError(value) || (isObject(value) && readText(value, 'stack') !== '');

/** The error and what caused it, the outermost first. */
const causesOf = (thrown) => {
  const causes = [thrown];
  while (causes.length <= MOST_CAUSES) {
    const last = causes[causes.length - 1];
    const errors = isObject(last) ? read(last, 'errors') : undefined;
    const cause = isObject(last)
      ? (read(last, 'cause') ?? (Array.isArray(errors) ? read(errors, 0) : undefined))
      : undefined;
    if (cause === undefined || cause === null || causes.includes(cause)) break;
    causes.push(cause);
  }
  return causes;
};

/** Without the paths that Node adds to "Cannot find module": files of ours among them. */
const tidy = (message) => message.replace(/\nRequire stack:(?:\n- .*)*|(?<=^.*Cannot find .*) imported from .*/, '');

const headlineOf = (thrown) => {
  if (!isError(thrown)) {
    const shown = attempt(
      () => inspect(thrown, { depth: 2, customInspect: false, maxStringLength: LONGEST_MESSAGE }),
      '',
    );
    return `Uncaught ${typeof shown === 'string' && shown !== '' ? shown : typeof thrown}`;
  }
  const message = tidy(readText(thrown, 'message'));
  const name = readText(thrown, 'name') || 'Error';
  return message === '' ? name : `${name}: ${message}`;
};

/** The stack with its frames in the user's places: `at main (main.ts:3:9)`. */
const formatStack = (headline, frames) => {
  const lines = [];
  // By index: this array is of the other realm, where user code may have replaced its iterator.
  for (let index = 0; index < frames.length; index += 1) {
    const frame = frames[index];
    const file = frame.file ?? '';
    if (file.startsWith('node:') || file.startsWith(workerFolder) || file === importerPath) continue;
    // A function that swc has added is of no line of the user's.
    if (locateIn(file.replace('file://', ''), frame.line, frame.column)?.line === 0) continue;
    lines.push(`    at ${relocate(frame.text)}`);
  }
  return [tidy(headline), ...lines].join('\n');
};

/** Replaces every `path:line:column` of a known file in a frame, also those of the code that called eval. */
const relocate = (text) => {
  for (const path of compiledPaths()) {
    for (let at = text.indexOf(`${path}:`); at >= 0; at = text.indexOf(`${path}:`, at + 1)) {
      const numbers = /^(\d+):(\d+)/.exec(text.slice(at + path.length + 1));
      if (!numbers) continue;
      const { file, line, column } = locateIn(path, Number(numbers[1]), Number(numbers[2]));
      const start = text.slice(0, at).endsWith('file://') ? at - 'file://'.length : at;
      const rest = text.slice(at + path.length + 1 + numbers[0].length);
      text = `${text.slice(0, start)}${file}${line > 0 ? `:${line}:${column}` : ''}${rest}`;
    }
  }
  return text;
};

/** The innermost place of the user's in a formatted stack. */
const placeIn = (stack) => {
  const files = compiledPaths().map((path) => locateIn(path, 1, 1).file);
  for (const line of stack.split('\n')) {
    if (!line.startsWith('    at ')) continue;
    const place = /(?:^ {4}at (?:async )?|\()([^()]*):(\d+):(\d+)\)?$/.exec(line);
    if (place && files.includes(place[1])) return { file: place[1], line: Number(place[2]), column: Number(place[3]) };
  }
  return null;
};

/** The module that could not be found, '' when that is not what happened. */
const missingModule = (error) => {
  const code = isObject(error) ? readText(error, 'code') : '';
  if (code !== 'MODULE_NOT_FOUND' && code !== 'ERR_MODULE_NOT_FOUND') return '';
  return /^Cannot find (?:module|package) '([^']+)'/.exec(readText(error, 'message'))?.[1] ?? '';
};

const hintFor = (causes, network) => {
  for (const cause of causes) {
    const name = missingModule(cause);
    if (/^[./]/.test(name)) return 'Other sources must be in files; paths are relative to the importing file.';
    if (name !== '') return `Declare ${name} in dependencies.`;
    const code = isObject(cause) ? readText(cause, 'code') : '';
    if (NETWORK_CODES.has(code) && !network) return 'The sandbox has no network.';
    if (code === 'EROFS' || code === 'EACCES') return 'Files can be written below /home/user and /tmp.';
  }
  return '';
};

/** The name of the system call's error that is behind it: ENOSPC, EAGAIN. */
const errnoOf = (causes) => {
  for (const cause of causes) {
    const code = isObject(cause) ? readText(cause, 'code') : '';
    if (code === 'ERR_WORKER_INIT_FAILED') return 'EAGAIN';
    if (/^E[A-Z0-9]{2,20}$/.test(code)) return code;
  }
  return '';
};

const NOWHERE = { traceback: '', file: '', line: 0, column: 0, hint: '', errno: '' };

const describeThrown = (thrown, network) => {
  const causes = causesOf(thrown);
  const stacks = causes.map((cause) => (isObject(cause) ? readText(cause, 'stack') : '') || headlineOf(cause));
  let place = placeIn(stacks[0]);
  if (!place) {
    // What swc makes of an import has no place of its own.
    place = locateImport(missingModule(thrown));
    stacks[0] = stacks[0].replace(`(${place.file})`, `(${place.file}:${place.line}:${place.column})`);
  }
  const traceback = stacks.map((stack) => clip(stack, LONGEST_TRACEBACK)).join('\nCaused by: ');
  return {
    ...NOWHERE,
    kind: 'EXCEPTION',
    message: headlineOf(thrown),
    traceback: isError(thrown) ? traceback : '',
    ...place,
    hint: hintFor(causes, network),
    errno: errnoOf(causes),
  };
};

/** instanceof asks the prototypes of what was thrown, which a Proxy may answer. */
const isOurs = (thrown, kind) => attempt(() => thrown instanceof kind, false);

/**
 * The `error` of a report for whatever was thrown while user code was compiled, called or its result written.
 * With a `network` an address that is not reached says nothing; the host tells what it has denied.
 */
const describe = (thrown, main, network = false) => {
  const badSource = isObject(thrown) ? badSources.get(thrown) : undefined;
  let error;
  if (badSource || isOurs(thrown, BadSource)) {
    const { message, file, line, column } = badSource ?? thrown;
    const place = line > 0 ? `${file}:${line}:${column}\n` : '';
    error = { ...NOWHERE, kind: 'SYNTAX_ERROR', message, traceback: `${place}${message}`, file, line, column };
  } else if (isOurs(thrown, EntryNotFound)) {
    error = { ...NOWHERE, ...main, kind: 'ENTRY_NOT_FOUND', message: thrown.message, hint: thrown.hint };
  } else if (isOurs(thrown, NotSerializable)) {
    error = { ...NOWHERE, kind: 'RESULT_NOT_SERIALIZABLE', message: thrown.message, hint: thrown.hint };
  } else {
    error = attempt(() => describeThrown(thrown, network), {
      ...NOWHERE,
      kind: 'EXCEPTION',
      message: 'an exception that cannot be read',
    });
  }
  error.message = clip(error.message, LONGEST_MESSAGE);
  error.traceback = clip(error.traceback, LONGEST_TRACEBACK);
  error.file = clip(error.file, LONGEST_MESSAGE);
  error.hint = clip(error.hint, LONGEST_MESSAGE);
  // Control characters take six bytes each in JSON; the limit of a report is for the whole.
  if (byteLengthOf(JSON.stringify(error)) > LONGEST_ERROR) error.traceback = clip(error.traceback, LONGEST_MESSAGE);
  return error;
};

const LINE_OF_V8 = /^([^\n]*):(\d+)\n([^\n]*)\n( *)\^/;

/**
 * What V8 refuses though the parsers took it, a wrong regular expression for example. Its stack begins with a drawing.
 */
const asBadSource = (error, path) => {
  const message = headlineOf(error);
  const drawing = LINE_OF_V8.exec(readText(error, 'stack'));
  const place = drawing && locateIn(path, Number(drawing[2]), drawing[4].length + 1);
  return new BadSource(message, place?.file ?? locateIn(path, 1, 1).file, place?.line ?? 0, place?.column ?? 0);
};

const rememberBadSource = (error, badSource) => badSources.set(error, badSource);

module.exports = { asBadSource, describe, formatStack, isOurs, rememberBadSource };
