"""Scan orders as data, for maps of any number of axes: their types, ready-made ones, and the scan that follows them."""

from vmamba.scan.any_order.named import (
    MODE_ORDERS,
    NAMED_ORDERS,
    ScanOrders,
    along,
    cross,
    diagonal,
    orders_of,
    windows,
)
from vmamba.scan.any_order.order_scan import order_scan, order_scan_reference
from vmamba.scan.any_order.orders import AxisOrder, IndexOrder, RuleOrder, ScanOrder, loops_of
from vmamba.scan.any_order.ssd_order_scan import ssd_order_scan, ssd_order_scan_reference

__all__ = [
    "MODE_ORDERS",
    "NAMED_ORDERS",
    "AxisOrder",
    "IndexOrder",
    "RuleOrder",
    "ScanOrder",
    "ScanOrders",
    "along",
    "cross",
    "diagonal",
    "loops_of",
    "order_scan",
    "order_scan_reference",
    "orders_of",
    "ssd_order_scan",
    "ssd_order_scan_reference",
    "windows",
]
