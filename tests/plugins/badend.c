/* Comes to a bad end while it is configured, in the way that "How" says. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static const char *config_keys[] = {"How"};

static int badend_config(const char *key, const char *value) {
  if (strcasecmp(value, "abort") == 0)
    abort();
  if (strcasecmp(value, "exit") == 0)
    exit(0);
  if (strcasecmp(value, "close") == 0)
    for (int fd = 3; fd < 1024; fd++)
      close(fd);
  while ((strcasecmp(value, "hang") == 0) || (strcasecmp(value, "close") == 0))
    pause();
  return 0;
}

void module_register(void) {
  plugin_register_config("badend", badend_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
}
