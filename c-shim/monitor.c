/**
 * collectd-live - c-shim/monitor.c
 *
 * Connects the monitor, which is written in Rust, to collectd. Decides nothing:
 * each callback hands what it gets to the function of the same name, and turns
 * its status into what collectd expects. The contract is README.md.
 **/

#include "daemon/collectd.h"

#include "daemon/plugin.h"

#include "collectd_live.h"

/* Set by module_register, cleared by monitor_free. collectd calls config, init
 * and shutdown only in between, and never two of them at once. It frees the
 * read callback before it calls shutdown. */
static cl_monitor *monitor;

static int result(cl_status status) { return status == CL_STATUS_OK ? 0 : -1; }

static int monitor_config(oconfig_item_t *block) {
  return result(cl_monitor_configure(monitor, block));
}

static int monitor_write(const data_set_t *ds, const value_list_t *vl,
                         user_data_t *ud) {
  return result(cl_monitor_write(ud->data, ds, vl, plugin_get_source()));
}

/* Without rules nothing is asked for each value. */
static int monitor_init(void) {
  bool takes_values = false;
  if (cl_monitor_takes_values(monitor, &takes_values) == CL_STATUS_OK &&
      takes_values &&
      plugin_register_write("monitor", monitor_write,
                            &(user_data_t){.data = monitor}) != 0)
    return -1;

  return result(cl_monitor_init(monitor));
}

/* May run in any thread, also while shutdown does. */
static int monitor_notification(const notification_t *notification,
                                user_data_t *ud) {
  return result(
      cl_monitor_notification(ud->data, notification, plugin_get_source()));
}

/* Whatever is wrong with the answer, nothing may be done then. */
static int monitor_policy(const plugin_request_t *request, char *reason,
                          size_t reason_size, user_data_t *ud) {
  return result(cl_monitor_policy(ud->data, request, reason, reason_size));
}

/* May run in any thread. What goes wrong is in the log. */
static void monitor_audit(const plugin_request_t *request, bool allowed,
                          const char *reason, user_data_t *ud) {
  (void)cl_monitor_audit(ud->data, request, allowed, reason);
}

static int monitor_read(void) { return result(cl_monitor_read(monitor)); }

static int monitor_shutdown(void) {
  return result(cl_monitor_shutdown(monitor));
}

/* collectd calls this when no notification callback runs any more. */
static void monitor_free(void *data) {
  monitor = NULL;
  cl_monitor_free(data);
}

void module_register(void) {
  /* Without a monitor every callback fails, and so does loading the plugin. */
  if (cl_monitor_new(MONITOR_HELPER, &monitor) != CL_STATUS_OK)
    ERROR("monitor plugin: The monitor could not be made.");

  /* The notification callback owns the monitor, because it is the last that
   * can be running: the others have returned before shutdown is called. */
  user_data_t ud = {.data = monitor, .free_func = monitor_free};
  user_data_t borrowed = {.data = monitor};

  if (plugin_register_complex_config("monitor", monitor_config) != 0 ||
      plugin_register_init("monitor", monitor_init) != 0 ||
      plugin_register_read("monitor", monitor_read) != 0 ||
      plugin_register_shutdown("monitor", monitor_shutdown) != 0 ||
      plugin_register_unloadable(PLUGIN_UNLOADABLE_RESIDENT) != 0 ||
      plugin_register_policy("monitor", monitor_policy, &borrowed) != 0 ||
      plugin_register_audit("monitor", monitor_audit, &borrowed) != 0 ||
      plugin_register_notification("monitor", monitor_notification, &ud) != 0)
    ERROR("monitor plugin: A callback could not be registered.");
}
