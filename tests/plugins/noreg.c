/* A shared object without module_register(): not a plugin. */

int noreg_answer(void);

int noreg_answer(void) { return 42; }
