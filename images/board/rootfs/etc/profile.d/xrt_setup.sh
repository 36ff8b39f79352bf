export XILINX_XRT=/usr
