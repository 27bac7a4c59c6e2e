/* Writes down the numbers of one plugin, seqread if no other is named with the
 * option "From", in the same way as seqsink: to the end of the file "File". Can
 * be unloaded. Writes nothing before there is the file "Gate", if one is named.
 */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <poll.h>

static const char *config_keys[] = {"File", "From", "Gate"};

static pthread_mutex_t file_lock = PTHREAD_MUTEX_INITIALIZER; /* file */
static FILE *file;
static char plugin[DATA_MAX_NAME_LEN] = "seqread";
static char *gate;

static int othersink_config(const char *key, const char *value) {
  if (strcasecmp(key, "From") == 0) {
    sstrncpy(plugin, value, sizeof(plugin));
    return 0;
  }
  if (strcasecmp(key, "Gate") == 0) {
    free(gate);
    gate = sstrdup(value);
    return 0;
  }
  if ((strcasecmp(key, "File") != 0) || (file != NULL))
    return -1;

  file = fopen(value, "a");
  if (file == NULL) {
    ERROR("othersink plugin: Opening \"%s\" failed: %s", value, STRERRNO);
    return -1;
  }
  return 0;
}

static int othersink_write(const data_set_t *ds, const value_list_t *vl,
                           user_data_t *ud) {
  if (strcmp(vl->plugin, plugin) != 0)
    return 0;

  char name[6 * DATA_MAX_NAME_LEN];
  if (FORMAT_VL(name, sizeof(name), vl) != 0)
    return -1;

  while ((gate != NULL) && (access(gate, F_OK) != 0))
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 5);

  pthread_mutex_lock(&file_lock);
  int status = fprintf(file, "%s %.0f %.6f\n", name, vl->values[0].gauge,
                       CDTIME_T_TO_DOUBLE(vl->time));
  if (fflush(file) != 0)
    status = -1;
  pthread_mutex_unlock(&file_lock);

  return (status < 0) ? -1 : 0;
}

static int othersink_init(void) { return (file != NULL) ? 0 : -1; }

static int othersink_shutdown(void) {
  sfree(gate);
  if (file == NULL)
    return 0;

  int status = fclose(file);
  file = NULL;
  return status;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("othersink", othersink_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("othersink", othersink_init);
  plugin_register_write("othersink", othersink_write, /* user_data = */ NULL);
  plugin_register_shutdown("othersink", othersink_shutdown);
}
