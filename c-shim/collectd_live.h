/* clang-format off */
/* The monitor's functions for C. Their contract is in README.md beside this file. */

#ifndef COLLECTD_LIVE_H
#define COLLECTD_LIVE_H

/* Generated from rust-core/src/ffi by the test `generated`; not to be edited. */

#include "daemon/plugin.h"
#include "liboconfig/oconfig.h"

/*
 What became of a call. Values are never given another meaning, and never given up.
 */
typedef enum cl_status {
  /*
   It was done.
   */
  CL_STATUS_OK = 0,
  /*
   A pointer that may not be NULL is.
   */
  CL_STATUS_NULL = 1,
  /*
   A text is not UTF-8.
   */
  CL_STATUS_NOT_UTF8 = 2,
  /*
   The configuration is wrong. What is wrong is in the log.
   */
  CL_STATUS_CONFIGURATION = 3,
  /*
   The monitor could not be started. Why is in the log.
   */
  CL_STATUS_INIT = 4,
  /*
   This is not the time for it.
   */
  CL_STATUS_STATE = 5,
  /*
   The monitor has failed before and is out of service.
   */
  CL_STATUS_FAILED = 6,
  /*
   The call ended in a panic. The monitor is out of service.
   */
  CL_STATUS_PANIC = 7,
  /*
   It may not be done.
   */
  CL_STATUS_REFUSED = 8,
} cl_status;

/*
 The monitor. Made by cl_monitor_new(), owned by whoever called that, ended by cl_monitor_free().
 */
typedef struct cl_monitor cl_monitor;

/*
 Makes a monitor. It starts nothing.

 Parameters: helper_path is the program collectd-live-runner, used where the configuration names no other;
 out is where to put the monitor.

 Returns: CL_STATUS_OK; CL_STATUS_NULL; CL_STATUS_NOT_UTF8 if the path is not; CL_STATUS_PANIC.

 Lifetimes: the path is copied. The monitor lives until cl_monitor_free().

 # Safety
 helper_path is a string that ends in NUL, or NULL; out is valid for writing a pointer, or NULL.
 */
enum cl_status cl_monitor_new(const char *helper_path,
                              struct cl_monitor **out);

/*
 Takes the plugin's block of collectd.conf. Each mistake in it, and in the file that it names, is logged.

 Parameters: block is the `<Plugin monitor>` block.

 Returns: CL_STATUS_OK; CL_STATUS_CONFIGURATION if there are mistakes, or this is the second block;
 CL_STATUS_NOT_UTF8; CL_STATUS_STATE after init; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.

 Lifetimes: the block is copied.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL; block is as liboconfig made it, or NULL.
 */
enum cl_status cl_monitor_configure(const struct cl_monitor *monitor,
                                    const oconfig_item_t *block);

/*
 Starts what was configured: the helper, the threads, the connection. Does not wait for the broker.

 Returns: CL_STATUS_OK; CL_STATUS_INIT if it could not be started, and nothing runs; CL_STATUS_STATE if it
 was started before; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL.
 */
enum cl_status cl_monitor_init(const struct cl_monitor *monitor);

/*
 Takes a notification. Does not block.

 Parameters: source is what plugin_get_source() says in the callback.

 Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.

 Lifetimes: what is kept of the notification is copied.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL; notification is one of the daemon's, or NULL; source
 is the daemon's.
 */
enum cl_status cl_monitor_notification(const struct cl_monitor *monitor,
                                       const notification_t *notification,
                                       plugin_source_t source);

/*
 Says whether the rules want to see values, so that cl_monitor_write() is to be registered.

 Parameters: out is where to put the answer.

 Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL; out is valid for writing a bool, or NULL.
 */
enum cl_status cl_monitor_takes_values(const struct cl_monitor *monitor,
                                       bool *out);

/*
 Takes values. Does not block.

 Parameters: source is what plugin_get_source() says in the callback.

 Returns: CL_STATUS_OK, also if no rule wants to see them, or they are lost because the rules are too slow;
 CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.

 Lifetimes: what is kept of the values is copied.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL; data_set and values are the daemon's and belong together,
 or NULL; source is the daemon's.
 */
enum cl_status cl_monitor_write(const struct cl_monitor *monitor,
                                const data_set_t *data_set,
                                const value_list_t *values,
                                plugin_source_t source);

/*
 Says whether a plugin may be loaded, reloaded or unloaded. Waits for nothing but the disks of the trust file and of
 the journal. Where nobody can decide, because the monitor has failed or there is a mistake in the trust file, root and the daemon's
 user may do everything, others nothing.

 Parameters: reason is where to put a text of up to reason_size bytes with the NUL, which says why not.

 Returns: CL_STATUS_OK if it may be done; CL_STATUS_REFUSED, and then the reason is written; CL_STATUS_NULL, which
 is to be taken as a refusal.

 Lifetimes: nothing of the request is kept.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL; request is the daemon's, or NULL; reason is valid for
 writing so many bytes, or NULL.
 */
enum cl_status cl_monitor_policy(const struct cl_monitor *monitor,
                                 const plugin_request_t *request,
                                 char *reason,
                                 size_t reason_size);

/*
 Takes note of what the daemon has decided about a plugin. Does not block.

 Parameters: reason says why it was refused, and is not looked at if it was allowed.

 Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.

 Lifetimes: what is kept of the request is copied.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL; request is the daemon's, or NULL; reason is a string that
 ends in NUL, or NULL.
 */
enum cl_status cl_monitor_audit(const struct cl_monitor *monitor,
                                const plugin_request_t *request,
                                bool allowed,
                                const char *reason);

/*
 Dispatches what the monitor has counted, and a notification when it has not been able to hear commands for
 long, or is again. Does not block.

 Returns: CL_STATUS_OK; CL_STATUS_FAILED; CL_STATUS_PANIC; CL_STATUS_NULL.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL.
 */
enum cl_status cl_monitor_read(const struct cl_monitor *monitor);

/*
 Ends what runs, and joins every thread. Takes some seconds at most.

 Returns: CL_STATUS_OK, also if nothing runs; CL_STATUS_PANIC; CL_STATUS_NULL.

 # Safety
 monitor is from cl_monitor_new() and not freed, or NULL.
 */
enum cl_status cl_monitor_shutdown(const struct cl_monitor *monitor);

/*
 Ends a monitor. One that still runs is shut down first. NULL is fine.

 # Safety
 monitor is from cl_monitor_new(), not freed, and no other call with it is in progress; or it is NULL.
 */
void cl_monitor_free(struct cl_monitor *monitor);

#endif  /* COLLECTD_LIVE_H */
