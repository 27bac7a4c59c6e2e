-- Runs where metrics of other hosts arrive by the plugin network, and sends the command to the host that they are
-- about. What comes from elsewhere must be asked for: `origin' does.
return {
  overloaded = {
    match = { origin = "network", plugin = "load", host = "web*" },
    handler = function(m)
      if m.values[2] > 20 then
        return { host = m.host, service = "web", command = "shed", ["for"] = "2m", cooldown = "15m", dry_run = true }
      end
    end,
  },
}
