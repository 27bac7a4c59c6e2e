#include "fuzz.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void fuzz_fail(char const *file, int line, char const *cond) {
  fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, cond);
  abort();
}

static bool same_value(oconfig_value_t const *a, oconfig_value_t const *b) {
  if (a->type != b->type)
    return false;

  switch (a->type) {
  case OCONFIG_TYPE_STRING:
    return strcmp(a->value.string, b->value.string) == 0;
  case OCONFIG_TYPE_NUMBER:
    return (a->value.number == b->value.number) ||
           (isnan(a->value.number) && isnan(b->value.number));
  case OCONFIG_TYPE_BOOLEAN:
    return a->value.boolean == b->value.boolean;
  }

  return false;
}

bool fuzz_same_tree(oconfig_item_t const *a, oconfig_item_t const *b) {
  if ((a->key == NULL) != (b->key == NULL))
    return false;
  if ((a->key != NULL) && (strcmp(a->key, b->key) != 0))
    return false;
  if ((a->values_num != b->values_num) || (a->children_num != b->children_num))
    return false;

  for (int i = 0; i < a->values_num; i++)
    if (!same_value(a->values + i, b->values + i))
      return false;
  for (int i = 0; i < a->children_num; i++)
    if (!fuzz_same_tree(a->children + i, b->children + i))
      return false;

  return true;
}
