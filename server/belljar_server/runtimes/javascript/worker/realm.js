'use strict';

/**
 * A JavaScript realm of the worker's own, beside the one of user code.
 *
 * User code may replace JSON, Array.prototype.push or Object.prototype.toString. What the worker does afterwards (find
 * main, write the result, describe an error) runs with the intrinsics of this realm, which user code never sees, so
 * that code can be written plainly. The rule: a function or object made here is never handed to user code.
 */

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');

/**
 * A `require` whose modules live in a new realm. `host` is what `require('host')` gives there: functions of the main
 * realm, captured before user code runs.
 */
exports.open = (host) => {
  const context = vm.createContext({ __proto__: null });
  const loaded = { __proto__: null };
  const load = (file) => {
    if (loaded[file]) return loaded[file].exports;
    const module = (loaded[file] = { __proto__: null, exports: { __proto__: null } });
    const source = `(function (exports, require, module) {${fs.readFileSync(file, 'utf8')}\n})`;
    const requireFrom = (name) => (name === 'host' ? host : load(path.resolve(path.dirname(file), name)));
    new vm.Script(source, { filename: file }).runInContext(context)(module.exports, requireFrom, module);
    return module.exports;
  };
  return load;
};
