/* Registers a match under the name of the plugin match_regex's. */

#include "collectd.h"

#include "filter_chain.h"
#include "plugin.h"

static int othermatch_match(const data_set_t *ds, const value_list_t *vl,
                            notification_meta_t **meta, void **user_data) {
  return FC_MATCH_NO_MATCH;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  fc_register_match("regex", (match_proc_t){.match = othermatch_match});
}
