"""The machine: the CPU shim for Megatron, device and implementation choices, the doctor.

The only package that patches another library. Kept empty of imports so that the shim loads without torch.
"""
