"""Networks of noised inputs, their times and conditions: denoisers and routers."""
