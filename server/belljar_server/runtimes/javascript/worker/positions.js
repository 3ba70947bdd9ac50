'use strict';

/**
 * Where a place in the code that runs was in the code that the user wrote. Lives in the worker's own realm.
 *
 * Two things lie between them: swc, which leaves a source map, and our own edits, which only ever insert text within a
 * line, or replace text by longer text, so that line numbers stay and columns can be counted back.
 */

/** Text with edits: `insert` in the place of the `remove` characters at `at`. Sorted by `at`, not overlapping. */
exports.edit = (text, edits) => {
  let edited = '';
  let position = 0;
  for (const { at, remove, insert } of edits) {
    edited += text.slice(position, at) + insert;
    position = at + remove;
  }
  return edited + text.slice(position);
};

/**
 * A function from (line, column) in the edited text to the same in the original; both count from 0, in UTF-16 units.
 */
exports.undo = (text, edits) => {
  const shifts = new Map();
  let line = 0;
  let start = 0;
  for (const { at, remove, insert } of edits) {
    for (let end = text.indexOf('\n', start); end >= 0 && end < at; end = text.indexOf('\n', start)) {
      line += 1;
      start = end + 1;
    }
    if (!shifts.has(line)) shifts.set(line, []);
    shifts.get(line).push({ column: at - start, remove, insert: insert.length });
  }
  return ([line, column]) => {
    let shifted = 0;
    for (const shift of shifts.get(line) ?? []) {
      const begin = shift.column + shifted;
      if (column < begin) break;
      if (column < begin + shift.insert) return [line, shift.column];
      shifted += shift.insert - shift.remove;
    }
    return [line, column - shifted];
  };
};

/** Chains functions of (line, column), the first one first. */
exports.chain =
  (...steps) =>
  (place) =>
    steps.reduce((at, step) => at && step(at), place);
