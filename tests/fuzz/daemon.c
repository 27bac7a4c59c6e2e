/* The daemon's own modules, kept from doing what must not happen while they are
 * being fuzzed. The linker replaces the functions whose names begin with
 * "__wrap_" (see ci/fuzz). */

#include "collectd.h"

#include "configfile.h"
#include "globals.h"
#include "plugin.h"
#include "plugin_internal.h"
#include "plugin_lifecycle.h"
#include "plugin_record.h"
#include "utils/avltree/avltree.h"
#include "utils/common/common.h"
#include "utils_cache.h"
#include "utils_threshold.h"

#include "fuzz.h"

#include <wordexp.h>

static data_source_t sources[] = {
    {.name = "one", .type = DS_TYPE_GAUGE, .min = NAN, .max = NAN},
    {.name = "two", .type = DS_TYPE_DERIVE, .min = 0, .max = NAN},
    {.name = "three", .type = DS_TYPE_COUNTER, .min = NAN, .max = NAN},
    {.name = "four", .type = DS_TYPE_ABSOLUTE, .min = NAN, .max = NAN},
};
static data_set_t sets[] = {
    {.type = "gauge", .ds_num = 1, .ds = sources},
    {.type = "all", .ds_num = STATIC_ARRAY_SIZE(sources), .ds = sources},
};

static void discard_log(int severity, char const *message, user_data_t *ud) {
  FUZZ_CHECK(strlen(message) < 1024);
}

/* What arrives at the daemon has to be in order. */
static int check_notification(notification_t const *n, user_data_t *ud) {
  FUZZ_CHECK(memchr(n->message, '\0', sizeof(n->message)) != NULL);
  FUZZ_CHECK(memchr(n->host, '\0', sizeof(n->host)) != NULL);
  FUZZ_CHECK(memchr(n->plugin, '\0', sizeof(n->plugin)) != NULL);
  FUZZ_CHECK(memchr(n->type, '\0', sizeof(n->type)) != NULL);
  FUZZ_CHECK(n->time != 0);
  for (notification_meta_t *meta = n->meta; meta != NULL; meta = meta->next)
    FUZZ_CHECK(memchr(meta->name, '\0', sizeof(meta->name)) != NULL);
  return 0;
}

void fuzz_daemon_init(void) {
  plugin_init_ctx();
  plugin_set_ctx((plugin_ctx_t){.interval = TIME_T_TO_CDTIME_T(10)});
  plugin_register_log("discard", discard_log, NULL);
  plugin_register_notification("check", check_notification, NULL);
  plugin_records_started();
  hostname_set("localhost");
  uc_init();
  for (size_t i = 0; i < STATIC_ARRAY_SIZE(sets); i++)
    FUZZ_CHECK(plugin_register_data_set(sets + i) == 0);

  static threshold_t threshold = {
      .host = "h",
      .plugin = "p",
      .type = "gauge",
      .warning_min = 1,
      .warning_max = NAN,
      .failure_min = NAN,
      .failure_max = 2,
      .hits = 3,
  };
  threshold_tree =
      c_avl_create((int (*)(void const *, void const *))(uintptr_t)strcmp);
  FUZZ_CHECK(threshold_tree != NULL);
  FUZZ_CHECK(c_avl_insert(threshold_tree, "h/p/gauge", &threshold) == 0);
}

void fuzz_daemon_reset(void) {
  /* Everything has been in the cache for too long. */
  timeout_g = 0;
  uc_check_timeout();
  FUZZ_CHECK(uc_get_size() == 0);
}

/* Without write threads the queue would only grow. */
int __wrap_plugin_dispatch_values(value_list_t const *vl);
int __wrap_plugin_dispatch_values(value_list_t const *vl) {
  data_set_t const *ds = plugin_get_ds(vl->type);
  FUZZ_CHECK(ds != NULL);
  FUZZ_CHECK(ds->ds_num == vl->values_len);

  value_list_t copy = *vl;
  if (copy.time == 0)
    copy.time = cdtime();
  if (copy.interval == 0)
    copy.interval = plugin_get_interval();
  uc_update(ds, &copy);
  return 0;
}

static int check_options(char const *name, plugin_load_options_t const *opts,
                         char *msg, size_t msg_size) {
  char reason[512] = "";

  FUZZ_CHECK(name[0] != '\0');
  FUZZ_CHECK((opts->config == NULL) || (opts->configfile == NULL));
  FUZZ_CHECK((opts->globals >= -1) && (opts->globals <= 1));
  ssnprintf(msg, msg_size, "Plugin \"%s\"", name);
  if (opts->config == NULL)
    return 0;

  oconfig_item_t *root = cf_parse_text(opts->config, reason, sizeof(reason));
  if (root == NULL) {
    FUZZ_CHECK(reason[0] != '\0');
    ssnprintf(msg, msg_size, "%s", reason);
    return EINVAL;
  }
  oconfig_free(root);
  return 0;
}

int __wrap_plugin_lifecycle_request(plugin_verb_t verb, char const *name,
                                    plugin_load_options_t const *opts,
                                    plugin_requester_t const *who, char *msg,
                                    size_t msg_size);
int __wrap_plugin_lifecycle_request(plugin_verb_t verb, char const *name,
                                    plugin_load_options_t const *opts,
                                    plugin_requester_t const *who, char *msg,
                                    size_t msg_size) {
  FUZZ_CHECK(who != NULL);
  if (verb != PLUGIN_VERB_UNLOAD)
    return check_options(name, opts, msg, msg_size);

  FUZZ_CHECK(name[0] != '\0');
  ssnprintf(msg, msg_size, "Plugin \"%s\"", name);
  return ENOENT;
}

/* Only names in the working directory, which holds some to be included. */
int __real_wordexp(char const *words, wordexp_t *we, int flags);
int __wrap_wordexp(char const *words, wordexp_t *we, int flags);
int __wrap_wordexp(char const *words, wordexp_t *we, int flags) {
  if ((strlen(words) > 32) ||
      (words[strspn(words, "abcdefghijklmnopqrstuvwxyz* ")] != '\0'))
    return WRDE_BADCHAR;
  return __real_wordexp(words, we, flags);
}
