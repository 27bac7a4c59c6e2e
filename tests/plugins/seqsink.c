/* Writes down every value of seqread: one line "<identifier> <number> <time>"
 * for each, flushed at once. Not unloadable, as seqread. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static const char *config_keys[] = {"File"};

static pthread_mutex_t file_lock = PTHREAD_MUTEX_INITIALIZER; /* file */
static FILE *file;

static int seqsink_config(const char *key, const char *value) {
  if (strcasecmp(key, "File") != 0)
    return -1;

  file = fopen(value, "a");
  if (file == NULL) {
    ERROR("seqsink plugin: Opening \"%s\" failed: %s", value, STRERRNO);
    return -1;
  }
  return 0;
}

static int seqsink_write(__attribute__((unused)) const data_set_t *ds,
                         const value_list_t *vl,
                         __attribute__((unused)) user_data_t *ud) {
  if (strcmp(vl->plugin, "seqread") != 0)
    return 0;

  char name[6 * DATA_MAX_NAME_LEN];
  if (FORMAT_VL(name, sizeof(name), vl) != 0)
    return -1;

  pthread_mutex_lock(&file_lock);
  int status = fprintf(file, "%s %.0f %.6f\n", name, vl->values[0].gauge,
                       CDTIME_T_TO_DOUBLE(vl->time));
  if (fflush(file) != 0)
    status = -1;
  pthread_mutex_unlock(&file_lock);

  return (status < 0) ? -1 : 0;
}

static int seqsink_init(void) { return (file != NULL) ? 0 : -1; }

static int seqsink_shutdown(void) {
  int status = fclose(file);
  file = NULL;
  return status;
}

void module_register(void) {
  plugin_register_config("seqsink", seqsink_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("seqsink", seqsink_init);
  plugin_register_write("seqsink", seqsink_write, /* user_data = */ NULL);
  plugin_register_shutdown("seqsink", seqsink_shutdown);
}
