/* Writes down where values and notifications come from: one line "<what> <name>
 * <plugin> <local or foreign>" for each, flushed at once, to the end of "File".
 */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static const char *config_keys[] = {"File"};

static pthread_mutex_t file_lock = PTHREAD_MUTEX_INITIALIZER; /* file */
static FILE *file;

static int witness_config(const char *key, const char *value) {
  if ((strcasecmp(key, "File") != 0) || (file != NULL))
    return -1;

  file = fopen(value, "a");
  return (file != NULL) ? 0 : -1;
}

static int witness(const char *what, const char *name) {
  plugin_source_t source = plugin_get_source();

  pthread_mutex_lock(&file_lock);
  int status = fprintf(file, "%s %s %s %s\n", what, name,
                       (source.plugin != NULL) ? source.plugin : "unknown",
                       source.foreign ? "foreign" : "local");
  if (fflush(file) != 0)
    status = -1;
  pthread_mutex_unlock(&file_lock);

  return (status < 0) ? -1 : 0;
}

static int witness_value(const char *what, const value_list_t *vl) {
  char name[6 * DATA_MAX_NAME_LEN];

  if (FORMAT_VL(name, sizeof(name), vl) != 0)
    return -1;
  return witness(what, name);
}

static int witness_write(const data_set_t *ds, const value_list_t *vl,
                         user_data_t *ud) {
  return witness_value("value", vl);
}

static int witness_missing(const value_list_t *vl, user_data_t *ud) {
  return witness_value("missing", vl);
}

static int witness_notification(const notification_t *n, user_data_t *ud) {
  char name[4 * DATA_MAX_NAME_LEN];

  ssnprintf(name, sizeof(name), "%s/%s/%s", n->plugin, n->type,
            n->type_instance);
  return witness("notification", name);
}

static int witness_init(void) { return (file != NULL) ? 0 : -1; }

static int witness_shutdown(void) { return (file != NULL) ? fclose(file) : 0; }

void module_register(void) {
  plugin_register_config("witness", witness_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("witness", witness_init);
  plugin_register_write("witness", witness_write, /* user_data = */ NULL);
  plugin_register_missing("witness", witness_missing, /* user_data = */ NULL);
  plugin_register_notification("witness", witness_notification,
                               /* user_data = */ NULL);
  plugin_register_shutdown("witness", witness_shutdown);
}
