/* What the monitor needs of collectd. */
#include "daemon/collectd.h"
#include "daemon/plugin.h"
#include "daemon/plugin_lifecycle.h"
#include "daemon/utils_cache.h"
#include "liboconfig/oconfig.h"
