-- Answers notifications: of the plugin threshold, and of the daemon about its plugins.
local metrics = nil

local notifications = {
  -- A value that is missing: the plugin that reads it may hang on to something that was replaced.
  missing = {
    match = { severity = "FAILURE", plugin = "apache" },
    handler = function(n)
      if n.message:find("has not been updated", 1, true) then
        return { reload_plugin = "apache", cooldown = "10m", max_per_hour = 2 }
      end
    end,
  },
}

return metrics, notifications
