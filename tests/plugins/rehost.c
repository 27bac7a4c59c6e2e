/* Changes the daemon's host name again and again while a thread reads it, and
 * says in the log whether that thread ever saw anything else. */

#include "collectd.h"

#include "globals.h"
#include "plugin.h"
#include "utils/common/common.h"

#include <stdatomic.h>

#define CHANGES 100000

static const char *const names[] = {"first.example.com", "second.example.com"};

static atomic_bool done;

static void *rehost_look(void *arg) {
  unsigned int *wrong = arg;
  char name[DATA_MAX_NAME_LEN];

  while (!atomic_load(&done)) {
    sstrncpy(name, hostname_g, sizeof(name));
    if ((strcmp(name, names[0]) != 0) && (strcmp(name, names[1]) != 0))
      (*wrong)++;
  }
  return NULL;
}

static int rehost_init(void) {
  unsigned int wrong = 0;
  pthread_t thread;

  hostname_set(names[0]);
  if (plugin_thread_create(&thread, rehost_look, &wrong, "rehost") != 0)
    return -1;
  for (int i = 0; i < CHANGES; i++)
    hostname_set(names[i % 2]);
  atomic_store(&done, true);
  pthread_join(thread, /* value = */ NULL);

  INFO("rehost plugin: %u wrong names.", wrong);
  return 0;
}

void module_register(void) { plugin_register_init("rehost", rehost_init); }
