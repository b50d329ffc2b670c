"""Scan orders as data, for maps of any number of axes: their types, ready-made ones, and the scan that follows them."""

from vmamba.scan.any_order.named import NAMED_ORDERS, ScanOrders, along, cross, diagonal, orders_of, windows
from vmamba.scan.any_order.order_scan import order_scan, order_scan_reference
from vmamba.scan.any_order.orders import AxisOrder, IndexOrder, RuleOrder, ScanOrder

__all__ = [
    "NAMED_ORDERS",
    "AxisOrder",
    "IndexOrder",
    "RuleOrder",
    "ScanOrder",
    "ScanOrders",
    "along",
    "cross",
    "diagonal",
    "order_scan",
    "order_scan_reference",
    "orders_of",
    "windows",
]
