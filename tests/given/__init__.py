"""What tests are given: models, inputs, files, and what people do to them.

models      narrow models of every family (`make`)
inputs      `latent()` and `image()`, for every test
pairs       ours and diffusers', with the same weights
twins       ours in torch and in Flax
files       the ways to write a model to disk
hostile     pieces of files that mean harm
changes     what people do to a model's modules
calls       calls of diffusers' class and of ours, one a line
decoder     a decoder of another architecture
passes      one pass of a kernel by itself
runs        budgets, threads, an error to stop with
nodes       what the pack's nodes take
web_models  models and images of the stand-in back end
collection  images and settings of a collection
hub         a Hugging Face Hub on the loopback address
saves       a model that is saved over another
command     the command line in this process
loops       event loops for tests that are not coroutines
thinned     combinations of which a few run by default
counts      how often functions are called
allocations what torch's allocator is asked for
growth      how far a process grows
in_use      what a process holds, without what allocators keep
states      what a whole process has set
sim         a device that does not exist
sim_case    what is simulated on it
odd_tensors tensors that cannot be computed with
special_files what can stand in a file's place and is none
order       a checker of the order of what it is given
"""
