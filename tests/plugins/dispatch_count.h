/* What the readers of the test plugins have in common. Include it after
 * collectd's headers. */

/* Dispatches one number as "<host>/<plugin>/count[-<type_instance>]". */
static int dispatch_count(const char *plugin, const char *type_instance,
                          gauge_t number) {
  value_t value = {.gauge = number};
  value_list_t vl = VALUE_LIST_INIT;
  vl.values = &value;
  vl.values_len = 1;
  sstrncpy(vl.plugin, plugin, sizeof(vl.plugin));
  sstrncpy(vl.type, "count", sizeof(vl.type));
  sstrncpy(vl.type_instance, type_instance, sizeof(vl.type_instance));
  return plugin_dispatch_values(&vl);
}
