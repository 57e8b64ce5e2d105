"The last module that a server of processes loads: what was loaded before is not looked through at each collection."
import gc

gc.collect()
gc.freeze()
