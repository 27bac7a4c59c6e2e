-- Starts a process that is gone. The plugin processes counts those that it is told to, here `Process "cron"'.
return {
  gone = {
    match = { plugin = "processes", plugin_instance = { "cron", "ssh" }, type = "ps_count" },
    handler = function(m)
      if m.values[1] == 0 then
        return { service = m.plugin_instance, command = "start", verify = "30s", cooldown = "1m" }
      end
    end,
  },
}
