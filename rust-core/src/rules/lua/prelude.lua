-- Runs once in each state, before any rule file: makes the dialect that rules are written in, takes away what the
-- sandbox refuses, and returns the functions by which the monitor calls handlers.
--
-- native: functions of the monitor. mark: [1] counts calls, [2] is the call that was stopped. dialect: what makes the
-- dialect, where it does not come with this Lua.
local native, mark, sandbox, dialect = ...

local error, ipairs, next, pcall, rawget, rawset, select, setmetatable, tostring, type, xpcall =
  error, ipairs, next, pcall, rawget, rawset, select, setmetatable, tostring, type, xpcall
local string_rep, table_concat, coresume = string.rep, table.concat, coroutine.resume

-- A call that was stopped stays stopped: no rule may catch that and go on.
local function passed(...)
  if mark[2] == mark[1] then error("it has gone on for too long and was stopped", 0) end
  return ...
end

_G.pcall = function(...) return passed(pcall(...)) end
_G.xpcall = function(...) return passed(xpcall(...)) end
coroutine.resume = function(...) return passed(coresume(...)) end

if dialect then dialect(native) end

_G.print = function(...)
  local words = { ... }
  for index = 1, select("#", ...) do words[index] = _G.tostring((select(index, ...))) end
  native.log("info", table_concat(words, " "))
end

-- The memory of LuaJIT is looked at from time to time only, so what takes much at once is looked at before.
if not dialect then
  local most = native.memory_limit
  string.rep = function(text, count, separator)
    if type(text) == "string" and type(count) == "number" and #text * count > most then
      error("not enough memory", 0)
    end
    return string_rep(text, count, separator)
  end
end

-- Instructions are counted by the interpreter only.
if not dialect then
  jit.off()
  jit.flush()
  jit.on = function() error("jit.on is refused: the instructions of compiled code cannot be counted", 2) end
end

-- Modules are Lua files below the directory of the rules, C modules are refused.
local loaded, standard = { }, rawget(_G, "require")
_G.require = function(name)
  if type(name) ~= "string" then error("require takes the name of a module", 2) end
  if loaded[name] ~= nil then return loaded[name] end
  local library = rawget(_G, name)
  if type(library) == "table" and (name == "string" or name == "table" or name == "math" or name == "bit"
      or name == "coroutine" or name == "os" or name == "io" or name == "debug" or name == "collectd") then
    return library
  end
  local source, path = native.module(name)
  if not source then
    if standard and not sandbox then return standard(name) end
    error("there is no module " .. name .. ": " .. path, 2)
  end
  local chunk, problem = native.load(source, "@" .. path)
  if not chunk then error(problem, 0) end
  loaded[name] = true
  local result = chunk(name)
  if result ~= nil then loaded[name] = result end
  return loaded[name]
end

if not sandbox then
  package.cpath = ""
  package.loadlib = function() error("package.loadlib is refused: there are no C modules in the monitor", 2) end
  local searchers = package.searchers or package.loaders
  for index = #searchers, 3, -1 do searchers[index] = nil end
end

if sandbox then
  local function refuse(name, level)
    return function()
      error(name .. " is refused: a rule that needs it needs `Sandbox false' in <Plugin monitor>", level or 2)
    end
  end
  local function replace(library, name, prefix, keep)
    local kept = {}
    for _, key in ipairs(keep) do kept[key] = library[key] end
    rawset(_G, name, setmetatable(kept, { __index = function(_, key) return refuse(prefix .. tostring(key)) end }))
  end
  replace(os, "os", "os.", { "clock", "date", "difftime", "time" })
  replace({}, "io", "io.", {})
  replace({}, "package", "package.", {})
  replace({ traceback = native.traceback }, "debug", "debug.", { "traceback" })
  _G.package.loaded = loaded
  _G.dofile, _G.loadfile = refuse("dofile"), refuse("loadfile")
  _G.newproxy = nil
  string.dump = refuse("string.dump")
  rawset(_G, "jit", nil)
  rawset(_G, "ffi", nil)
  -- A function of the collector runs when nobody counts.
  _G.setmetatable = function(object, meta)
    if type(meta) == "table" and rawget(meta, "__gc") ~= nil then
      error("__gc is refused: a rule that needs it needs `Sandbox false' in <Plugin monitor>", 2)
    end
    return setmetatable(object, meta)
  end
  local collect = collectgarbage
  _G.collectgarbage = function(option, ...)
    option = option or "collect"
    if option ~= "collect" and option ~= "count" and option ~= "step" then
      refuse("collectgarbage(\"" .. tostring(option) .. "\")", 3)()
    end
    return collect(option, ...)
  end
  -- Only text: what was compiled before is not checked.
  _G.load = function(chunk, name, _, environment)
    if type(chunk) == "function" then
      local pieces = {}
      for piece in chunk do
        if piece == "" then break end
        pieces[#pieces + 1] = piece
      end
      chunk = table_concat(pieces)
    end
    return native.load(chunk, name or "=(load)", environment)
  end
  _G.loadstring = function(chunk, name) return native.load(chunk, name or chunk) end
end

-- How handlers are called.
local handlers = {}

local function call(id, argument, answers)
  local seq = mark[1] + 1
  mark[1] = seq
  local fine, answer = pcall(handlers[id], argument)
  if mark[2] == seq then
    fine, answer = false, true
  elseif fine and answer == nil then
    return answers
  end
  answers = answers or {}
  answers[#answers + 1] = { id, fine, answer }
  return answers
end

local function metric(series, time, interval, ...)
  return {
    host = series.host,
    plugin = series.plugin,
    plugin_instance = series.plugin_instance,
    type = series.type,
    type_instance = series.type_instance,
    time = time,
    interval = interval,
    values = { ... },
    dsnames = series.dsnames,
    dstypes = series.dstypes,
  }
end

-- Calls the handlers from one on, until one fails: mark[1] tells which. While instructions are counted each of them
-- costs, so this loop has as few as possible. A handler may change what it was given; the next one is given it anew.
local function call_some(from, start, ids, answers, series, time, interval, ...)
  local host, plugin, plugin_instance = series.host, series.plugin, series.plugin_instance
  local type_, type_instance = series.type, series.type_instance
  local dsnames, dstypes = series.dsnames, series.dstypes
  local first, many = ..., select("#", ...) > 1
  local mark, handlers, t, values = mark, handlers
  for index = from, #ids do
    local call = start + index
    mark[1] = call
    if not t then
      t = metric(series, time, interval, ...)
      values = t.values
    end
    local answer = handlers[ids[index]](t)
    if mark[2] == call then
      -- It was stopped, and a function of the library has kept that to itself.
      answers[#answers + 1] = { ids[index], false, true }
    elseif answer ~= nil then
      answers[#answers + 1] = { ids[index], true, answer }
    end
    if t.plugin ~= plugin or t.host ~= host or t.plugin_instance ~= plugin_instance or t.type ~= type_
      or t.type_instance ~= type_instance or t.time ~= time or t.interval ~= interval or t.dsnames ~= dsnames
      or t.dstypes ~= dstypes or t.values ~= values
      or (values[1] ~= first and (first == first or values[1] == values[1])) then
      t = nil
    elseif many then
      for at = 2, select("#", ...) do
        local was, now = (select(at, ...)), values[at]
        if now ~= was and (now == now or was == was) then t = nil end
      end
    end
  end
end

local function call_metric(ids, ...)
  local answers, from, start = {}, 1, mark[1]
  repeat
    local fine, problem = pcall(call_some, from, start, ids, answers, ...)
    if not fine then
      local failed = mark[1] - start
      -- Nobody was called: this is no fault of a handler.
      if failed < from then error(problem, 0) end
      answers[#answers + 1] = { ids[failed], false, mark[2] == mark[1] or problem }
      from = failed + 1
    end
  until fine or from > #ids
  return answers[1] and answers
end

local function call_notification(ids, fields)
  local answers
  for index = 1, #ids do
    local copy = {}
    for key, value in next, fields do copy[key] = value end
    answers = call(ids[index], copy, answers)
  end
  return answers
end

-- A function that a task has brought, or a rule file itself.
local function call_other(f, ...)
  local seq = mark[1] + 1
  mark[1] = seq
  local function finish(fine, ...)
    if mark[2] == seq then return false, true end
    return fine, ...
  end
  return finish(pcall(f, ...))
end

return handlers, call_metric, call_notification, call_other, metric
