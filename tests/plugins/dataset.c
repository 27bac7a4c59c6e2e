/* Registers the type "users" anew, with two data sources, and a type "flip"
 * that has one and two in turns: each read registers it, dispatches a value of
 * it, and uses what it was before. Can be unloaded. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static data_source_t sources[] = {
    {.name = "one", .type = DS_TYPE_GAUGE, .min = 0, .max = NAN},
    {.name = "two", .type = DS_TYPE_DERIVE, .min = 0, .max = NAN},
};

static int dataset_init(void) {
  data_set_t users = {.type = "users", .ds_num = 2, .ds = sources};

  return plugin_register_data_set(&users);
}

static int dataset_read(void) {
  static unsigned int reads;

  const data_set_t *before = plugin_get_ds("flip");
  data_set_t flip = {.type = "flip", .ds_num = 1 + reads % 2, .ds = sources};
  if (plugin_register_data_set(&flip) != 0)
    return -1;
  reads++;

  value_t values[] = {{.gauge = reads}, {.derive = reads}};
  value_list_t vl = VALUE_LIST_INIT;
  vl.values = values;
  vl.values_len = flip.ds_num;
  sstrncpy(vl.plugin, "dataset", sizeof(vl.plugin));
  sstrncpy(vl.type, flip.type, sizeof(vl.type));
  int status = plugin_dispatch_values(&vl);

  for (size_t i = 0; (before != NULL) && (i < before->ds_num); i++)
    if (strcmp(before->ds[i].name, sources[i].name) != 0)
      status = -1;
  return status;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_init("dataset", dataset_init);
  plugin_register_read("dataset", dataset_read);
}
