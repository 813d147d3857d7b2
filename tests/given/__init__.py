"""What tests are given: models, inputs, files, and what people do to them.

models      narrow models of every family (`make`)          inputs      `latent()` and `image()`, for every test
pairs       ours and diffusers', with the same weights       twins       ours in torch and in Flax
files       the ways to write a model to disk                hostile     pieces of files that mean harm
changes     what people do to a model's modules              decoder     a decoder of another architecture
runs        budgets, threads, an error to stop with          nodes       what the pack's nodes take
collection  images and settings of a collection              hub         a Hugging Face Hub on the loopback address
thinned     combinations of which a few run by default   command     the command line in this process
passes      one pass of a kernel by itself               allocations what torch's allocator is asked for
counts      how often functions are called
saves       a model that is saved over another      growth      how far a process grows
states      what a whole process has set     web_models  models and images of the stand-in back end
sim, order  a device that does not exist, and its checker
"""
