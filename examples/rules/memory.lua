-- Restarts what leaks when memory was short in three of the last five readings, then resets it, then gives up.
local function short(m)
  return m.values[1] < 200 * 1024 * 1024
end

return {
  short = {
    match = { plugin = "memory", type_instance = "free" },
    handler = function(m)
      if short(m) then
        return {
          service = "web", command = "restart", times = "3/5", max_per_hour = 4,
          verify = { within = "1m", check = function(now) return not short(now) end },
          escalate = { { service = "web", command = "reset" } },
        }
      end
    end,
  },
}
