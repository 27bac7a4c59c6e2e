-- The dialect of Lua 5.1, for a Lua that is newer: runs once in each state, before any rule file. LuaJIT needs none of
-- it, and could not read it.
--
-- native: functions of the monitor.
local native = ...

local error, pairs, select, tonumber, tostring, type = error, pairs, select, tonumber, tostring, type
local floor, ceil = math.floor, math.ceil
local string_format, string_gsub, string_find = string.format, string.gsub, string.find
local table_concat = table.concat

local math_type = math.type
_G.unpack = table.unpack
_G.loadstring = function(text, name) return _G.load(text, name) end
_G.setfenv, _G.getfenv = native.setfenv, native.getfenv
table.getn = function(t) return #t end
table.maxn = function(t)
  local most = 0
  for key in pairs(t) do
    if type(key) == "number" and key > most then most = key end
  end
  return most
end
table.foreach = function(t, f)
  for key, value in pairs(t) do
    local result = f(key, value)
    if result ~= nil then return result end
  end
end
table.foreachi = function(t, f)
  for index = 1, #t do
    local result = f(index, t[index])
    if result ~= nil then return result end
  end
end
string.gfind = string.gmatch
math.pow = function(x, y) return x ^ y end
math.log10 = function(x) return math.log(x, 10) end
math.mod = math.fmod
math.ldexp = function(m, e) return m * 2.0 ^ e end
math.cosh = function(x) return (math.exp(x) + math.exp(-x)) / 2 end
math.sinh = function(x) return (math.exp(x) - math.exp(-x)) / 2 end
math.tanh = function(x)
  local up = math.exp(2 * x)
  if up == math.huge then return 1 end
  return (up - 1) / (up + 1)
end

-- A whole number is written without a fraction, whatever it was computed from.
local function text(value)
  if math_type(value) == "float" then return string_format("%.14g", value) end
  return tostring(value)
end
_G.tostring = text

local function whole(value)
  local number = tonumber(value)
  if math_type(number) ~= "float" then return value end
  local cut = number < 0 and ceil(number) or floor(number)
  return math.tointeger(cut) or value
end

string.format = function(format, ...)
  local count = select("#", ...)
  local plain = not string_find(format, "%%[%-+ #0]*%d*%.?%d*[iu]")
  for index = 1, count do
    local kind = type((select(index, ...)))
    if kind ~= "string" and math_type((select(index, ...))) ~= "integer" then
      plain = false
      break
    end
  end
  if plain and not string_find(format, "%%[%-+ #0]*%d*%.?%d*[dxXoc]") then
    return string_format(format, ...)
  end
  local arguments, index = { ... }, 0
  format = string_gsub(format, "%%([%-+ #0]*%d*%.?%d*)(.)", function(flags, conversion)
    if conversion == "%" then return nil end
    index = index + 1
    if string_find("dicouxX", conversion, 1, true) then
      arguments[index] = whole(arguments[index])
      if conversion == "i" or conversion == "u" then return "%" .. flags .. "d" end
    elseif conversion == "s" and math_type(arguments[index]) == "float" then
      arguments[index] = text(arguments[index])
    end
    return nil
  end)
  return string_format(format, table.unpack(arguments, 1, count))
end

table.concat = function(list, separator, first, last)
  first, last = first or 1, last or #list
  for index = first, last do
    if math_type(list[index]) == "float" then
      local copy = {}
      for at = first, last do copy[at - first + 1] = math_type(list[at]) and text(list[at]) or list[at] end
      return table_concat(copy, separator and text(separator), 1, last - first + 1)
    end
  end
  return table_concat(list, separator and text(separator), first, last)
end

-- Bits are signed and 32 of them, as LuaJIT has it.
local function signed(number)
  number = number & 0xffffffff
  if number >= 0x80000000 then return number - 0x100000000 end
  return number
end
local function bits(value)
  local number = tonumber(value) or error("number expected, got " .. type(value), 3)
  if math_type(number) == "float" then number = math.tointeger(floor(number + 0.5) % 4294967296.0) or 0 end
  return number & 0xffffffff
end
local function fold(operation)
  return function(first, ...)
    local result = bits(first)
    for index = 1, select("#", ...) do result = operation(result, bits((select(index, ...)))) end
    return signed(result)
  end
end
_G.bit = {
  tobit = function(x) return signed(bits(x)) end,
  bnot = function(x) return signed(~bits(x)) end,
  band = fold(function(a, b) return a & b end),
  bor = fold(function(a, b) return a | b end),
  bxor = fold(function(a, b) return a ~ b end),
  lshift = function(x, n) return signed(bits(x) << (bits(n) & 31)) end,
  rshift = function(x, n) return signed(bits(x) >> (bits(n) & 31)) end,
  arshift = function(x, n) return signed(signed(bits(x)) // (1 << (bits(n) & 31))) end,
  rol = function(x, n)
    local number, by = bits(x), bits(n) & 31
    return signed((number << by) | (number >> (32 - by)))
  end,
  ror = function(x, n)
    local number, by = bits(x), bits(n) & 31
    return signed((number >> by) | (number << (32 - by)))
  end,
  bswap = function(x)
    local n = bits(x)
    return signed((n >> 24) | ((n >> 8) & 0xff00) | ((n << 8) & 0xff0000) | (n << 24))
  end,
  tohex = function(x, n)
    n = n and whole(n) or 8
    local digits = string_format(n < 0 and "%08X" or "%08x", bits(x))
    if n < 0 then n = -n end
    return digits:sub(-(n > 8 and 8 or n))
  end,
}
