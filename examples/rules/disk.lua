-- Cleans a file system that has been nearly full for five minutes, at most once an hour.
--
-- df reports percentages with `ValuesPercentage true'.
return {
  nearly_full = {
    match = { plugin = "df", type = "percent_bytes", type_instance = "free" },
    handler = function(m)
      if m.values[1] < 5 then
        return {
          service = "disk", command = "clean", params = { mount = m.plugin_instance },
          ["for"] = "5m", cooldown = "1h",
          -- What is 6 % free after cleaning will be full again soon: that is no success.
          clear = function(now) return now.values[1] > 10 end,
          verify = "10m",
        }
      end
    end,
  },
}
