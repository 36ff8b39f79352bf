# A board reads /proc/device-tree/chosen/pynq_board, which no container can add to /proc.
export BOARD=$(tr -d '\0' < /run/standin/device-tree/chosen/pynq_board)
