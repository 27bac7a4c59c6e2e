/* An ordinary plugin that does not say that it can be unloaded. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

static int stubborn_read(void) { return dispatch_count("stubborn", "", 1); }

void module_register(void) { plugin_register_read("stubborn", stubborn_read); }
