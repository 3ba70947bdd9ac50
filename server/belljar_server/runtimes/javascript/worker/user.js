'use strict';

/** What user code gets to see of the worker: its module, require and import, and stacks in its own places. */

const { readFileSync, statSync } = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const process = require('node:process');
const { pathToFileURL, fileURLToPath } = require('node:url');
const { types } = require('node:util');
const vm = require('node:vm');

const { underWay } = require('./leftover.js');

const { createRequire, registerHooks } = Module;
const { Script, constants } = vm;
const { apply, defineProperty } = Reflect;
const later = setImmediate;
const errorToString = Error.prototype.toString;

const SOURCE = /\.[mc]?[jt]s$/;
/** Where an import without, or with the JavaScript, extension may lead. */
const EXTENSIONS = ['.ts', '.mts', '.cts', '.js', '.mjs', '.cjs', '.json', '/index.ts', '/index.js'];
const MOST_FRAMES = 30;

/** Runs code in the realm of user code; a SyntaxError's stack begins with the place. */
exports.runCode = (code, filename) =>
  new Script(code, {
    filename,
    importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  }).runInThisContext();

/** Waits for a value as `await` does: in this realm it does not look up a `then` that user code may have replaced. */
exports.settle = async (value, resolve, reject) => {
  let result;
  try {
    result = await value;
  } catch (error) {
    reject(error);
    return;
  }
  resolve(result);
};

const isRelative = (name) => name.startsWith('./') || name.startsWith('../') || name === '.' || name === '..';

const isFile = (file) => statSync(file, { throwIfNoEntry: false })?.isFile() ?? false;

/** `importerPath` names the file from which a native import() of the main source resolves. */
exports.importerPath = (folder) => path.join(folder, '.import');

/** The names of a CommonJS module around the main source, and what our edits in it call. */
exports.makeScope = (filename, isProgram) => {
  const folder = path.dirname(filename);
  const module = new Module(filename);
  module.filename = filename;
  module.paths = Module._nodeModulePaths(folder);
  process.mainModule = isProgram ? module : undefined;
  const require = createRequire(filename);
  const nativeImport = exports.runCode('(name, options) => import(name, options)', exports.importerPath(folder));
  const importSource = (name) => nativeImport(pathToFileURL(require.resolve(name)).href);
  let getMain = null;
  const scope = {
    __proto__: null,
    names: { __proto__: null, exports: module.exports, require, module, __filename: filename, __dirname: folder },
    finish: (value) => value,
    offerMain: (get) => {
      getMain ??= get;
    },
    getMain: () => getMain(),
    meta: {
      __proto__: null,
      dirname: folder,
      filename,
      main: isProgram,
      resolve: (name) => {
        const resolved = require.resolve(name);
        return path.isAbsolute(resolved) ? pathToFileURL(resolved).href : resolved;
      },
      url: pathToFileURL(filename).href,
    },
    importModule: async (specifier, options) => {
      const name = `${specifier}`;
      if (!isRelative(name)) return nativeImport(name, options);
      try {
        return asNamespace(require(name));
      } catch (error) {
        if (error?.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
        return importSource(name);
      }
    },
    /** Loads imported sources of the user's that await at the top level: require cannot. */
    preload: async (names) => {
      const waited = { __proto__: null };
      for (const name of names) {
        if (!isRelative(name)) continue;
        try {
          require(name);
        } catch (error) {
          if (error?.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
          waited[name] = await importSource(name);
        }
      }
      if (Object.keys(waited).length > 0) {
        scope.names.require = Object.assign((name) => withEsModule(waited[name]) ?? require(name), require);
      }
    },
  };
  return scope;
};

/** Tells what swc made of an import that this is an ES module: its default export is `default`. */
const withEsModule = (namespace) => namespace && { __proto__: namespace, __esModule: true };

/** What import() gives for a module that require has loaded. */
const asNamespace = (loaded) => {
  if (types.isModuleNamespaceObject(loaded) || loaded?.__esModule) return loaded;
  return { __proto__: null, ...(typeof loaded === 'object' ? loaded : {}), default: loaded };
};

/**
 * Lets Node's loader serve the sources of `folder`: TypeScript too, without extension too, each through `compile`.
 * A BadSource of its becomes a SyntaxError that `remember` is told about.
 */
exports.serveSources = (folder, compile, remember) => {
  const root = pathToFileURL(`${folder}/`).href;
  registerHooks({
    resolve(name, context, next) {
      if (!context.parentURL?.startsWith(root) || !isRelative(name)) return next(name, context);
      try {
        return next(name, context);
      } catch (error) {
        const target = path.resolve(path.dirname(fileURLToPath(context.parentURL)), name);
        const stem = target.replace(/\.([mc]?)js$/, '');
        const file = EXTENSIONS.flatMap((extension) => [target + extension, stem + extension]).find(isFile);
        if (!file) throw error;
        return { url: pathToFileURL(file).href, shortCircuit: true };
      }
    },
    load(url, context, next) {
      if (!url.startsWith(root) || !SOURCE.test(url)) return next(url, context);
      const file = fileURLToPath(url);
      try {
        const { format, source } = compile(readFileSync(file, 'utf8'), file, path.relative(folder, file));
        return { format, source, shortCircuit: true };
      } catch (badSource) {
        const error = new SyntaxError(badSource.message.replace(/^SyntaxError: /, ''));
        remember(error, badSource);
        throw error;
      }
    },
  });
};

/** Stacks of user code in the user's places. Code that sets Error.prepareStackTrace gets V8's own frames, as ever. */
exports.formatStacksWith = (format) => {
  Error.stackTraceLimit = MOST_FRAMES;
  Error.prepareStackTrace = (error, sites) => {
    let headline = 'Error';
    try {
      headline = apply(errorToString, error, []);
    } catch {
      // A hostile name or message: the frames are still worth having.
    }
    const frames = [];
    for (let index = 0; index < sites.length; index += 1) {
      const site = sites[index];
      frames[index] = {
        __proto__: null,
        text: `${site}`,
        file: site.getFileName(),
        line: site.getLineNumber(),
        column: site.getColumnNumber(),
      };
    }
    return format(headline, frames);
  };
};

/** The process as a program sees it that was started as `node main.js` in its home. */
exports.dressProcess = (home, mainFile, environment) => {
  process.chdir(home);
  for (const name of Object.keys(process.env)) if (!BASE_ENVIRONMENT.has(name)) delete process.env[name];
  Object.assign(process.env, environment);
  process.argv = ['node', mainFile];
  process.execArgv = [];
  for (const file of Object.keys(Module._cache)) delete Module._cache[file];
};

const BASE_ENVIRONMENT = new Set(['PATH', 'HOME', 'LANG', 'TZ']);

/**
 * Tells of an exception that user code does not handle itself, of an event loop that ran dry, and of process.exit.
 * Gives a function to call when nothing may hide a dry event loop any more, which is false when that cannot be had.
 */
exports.watch = ({ failed, starved, exited }) => {
  const { listenerCount } = process;
  // Listeners of user code come after ours, and may begin something new: then there is a next time.
  const look = () => later(() => underWay().length === 0 && starved());
  process.addUncaughtExceptionCaptureCallback((error) => {
    if (apply(listenerCount, process, ['uncaughtException']) > 0) return false;
    failed(error);
    return true;
  });
  process.on('beforeExit', () => void (apply(listenerCount, process, ['beforeExit']) === 1 ? starved() : look()));
  process.reallyExit = (code) => exited(code || 0);
  return () => {
    const { emit } = process; // of user code, maybe: then there may be no event, as when it removed all listeners
    const value = function (name) {
      if (name === 'beforeExit') look();
      return typeof emit === 'function' && apply(emit, this, arguments);
    };
    return defineProperty(process, 'emit', { __proto__: null, configurable: true, writable: true, value });
  };
};
