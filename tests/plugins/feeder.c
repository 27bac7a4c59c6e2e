/* Dispatches 0, 1, 2 … and can be unloaded. Its options:
 *
 *   Instance "x"     the numbers are "<host>/feeder/count-x"
 *   Burst n          dispatches so many in its first read; later ones one each
 *   OwnType true     the numbers are of a type that it registers itself,
 *                    "<host>/feeder/feeder-x"
 *   Mute "file"      dispatches nothing while there is such a file
 *   Entered "file"   makes that file when it has dispatched something, and
 *   Release "file"   does not return before there is this one
 */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <fcntl.h>
#include <poll.h>

static const char *config_keys[] = {"Instance", "Burst",   "OwnType",
                                    "Mute",     "Entered", "Release"};

static char instance[DATA_MAX_NAME_LEN];
static int burst = 1;
static bool own_type;
static char *mute;
static char *entered;
static char *release;

static data_source_t own_source = {
    .name = "value", .type = DS_TYPE_GAUGE, .min = NAN, .max = NAN};
static const data_set_t own_set = {
    .type = "feeder", .ds_num = 1, .ds = &own_source};

static int feeder_config(const char *key, const char *value) {
  char **path = NULL;

  if (strcasecmp(key, "Instance") == 0)
    sstrncpy(instance, value, sizeof(instance));
  else if (strcasecmp(key, "Burst") == 0)
    burst = atoi(value);
  else if (strcasecmp(key, "OwnType") == 0)
    own_type = IS_TRUE(value);
  else if (strcasecmp(key, "Mute") == 0)
    path = &mute;
  else if (strcasecmp(key, "Entered") == 0)
    path = &entered;
  else if (strcasecmp(key, "Release") == 0)
    path = &release;
  else
    return -1;

  if (path != NULL) {
    free(*path);
    *path = sstrdup(value);
  }
  return 0;
}

static int feeder_init(void) {
  return own_type ? plugin_register_data_set(&own_set) : 0;
}

static int feeder_read(void) {
  static int next;

  if ((mute != NULL) && (access(mute, F_OK) == 0))
    return 0;

  value_t value;
  value_list_t vl = VALUE_LIST_INIT;
  vl.values = &value;
  vl.values_len = 1;
  sstrncpy(vl.plugin, "feeder", sizeof(vl.plugin));
  sstrncpy(vl.type, own_type ? own_set.type : "count", sizeof(vl.type));
  sstrncpy(vl.type_instance, instance, sizeof(vl.type_instance));
  do {
    value.gauge = (gauge_t)next++;
    if (plugin_dispatch_values(&vl) != 0)
      return -1;
  } while (next < burst);
  INFO("feeder plugin: Dispatched %d numbers.", next);

  if ((entered == NULL) || (release == NULL))
    return 0;

  int fd = open(entered, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0)
    return -1;
  close(fd);
  while (access(release, F_OK) != 0)
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 5);
  return 0;
}

static int feeder_shutdown(void) {
  sfree(mute);
  sfree(entered);
  sfree(release);
  return 0;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("feeder", feeder_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("feeder", feeder_init);
  plugin_register_read("feeder", feeder_read);
  plugin_register_shutdown("feeder", feeder_shutdown);
}
