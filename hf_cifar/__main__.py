"""`python -m hf_cifar` is `hf-cifar`; `accelerate launch -m hf_cifar train RECIPE` runs it on many
GPUs.
"""

from hf_cifar.cli.main import main

if __name__ == "__main__":
    main()
