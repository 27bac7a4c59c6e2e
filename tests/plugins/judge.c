/* Decides who may change plugins: refuses what has a statement with the key
 * "Refuse". Writes each decision to the end of "Audit": "<allowed or refused>
 * <verb> <plugin> <role> <uid> <reason>". Fails without one. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static const char *config_keys[] = {"Refuse", "Audit"};

static char *refuse;

static pthread_mutex_t audit_lock = PTHREAD_MUTEX_INITIALIZER; /* audit */
static FILE *audit;

static int judge_config(const char *key, const char *value) {
  if ((strcasecmp(key, "Audit") == 0) && (audit == NULL)) {
    audit = fopen(value, "a");
    return (audit != NULL) ? 0 : -1;
  }

  if (strcasecmp(key, "Refuse") != 0)
    return -1;
  free(refuse);
  refuse = sstrdup(value);
  return 0;
}

static bool has_key(const oconfig_item_t *ci, const char *key) {
  for (int i = 0; (ci != NULL) && (i < ci->children_num); i++)
    if ((strcasecmp(ci->children[i].key, key) == 0) ||
        has_key(ci->children + i, key))
      return true;
  return false;
}

static int judge_policy(const plugin_request_t *request, char *reason,
                        size_t reason_size, user_data_t *ud) {
  if ((refuse == NULL) || !has_key(request->config, refuse))
    return 0;

  ssnprintf(reason, reason_size, "`%s' is not allowed", refuse);
  return -1;
}

static void judge_audit(const plugin_request_t *request, bool allowed,
                        const char *reason, user_data_t *ud) {
  const char *const verbs[] = {"none", "load", "unload", "reload"};
  const char *const roles[] = {"other", "group", "owner", "plugin"};

  pthread_mutex_lock(&audit_lock);
  fprintf(audit, "%s %s %s %s %i %s\n", allowed ? "allowed" : "refused",
          verbs[request->verb], request->plugin, roles[request->who.role],
          (int)request->who.uid, reason);
  fflush(audit);
  pthread_mutex_unlock(&audit_lock);
}

static int judge_init(void) { return (audit != NULL) ? 0 : -1; }

static int judge_shutdown(void) {
  sfree(refuse);
  return (audit != NULL) ? fclose(audit) : 0;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("judge", judge_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("judge", judge_init);
  plugin_register_policy("judge", judge_policy, /* user_data = */ NULL);
  plugin_register_audit("judge", judge_audit, /* user_data = */ NULL);
  plugin_register_shutdown("judge", judge_shutdown);
}
