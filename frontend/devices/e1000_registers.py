"""Registers of the 82540EM: where they are and what their bits are called.

Names, offsets and initial values are those of Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software
Developer's Manual" (317453), chapter 13; the other e1000 modules name its sections.
"""

WINDOW = 0x20000

CTRL, STATUS, EECD, EERD, CTRL_EXT, MDIC = 0x0000, 0x0008, 0x0010, 0x0014, 0x0018, 0x0020
FCT, VET = 0x0030, 0x0038
ICR, ITR, ICS, IMS, IMC = 0x00C0, 0x00C4, 0x00C8, 0x00D0, 0x00D8
RCTL, TCTL = 0x0100, 0x0400
RDBAL, RDBAH, RDLEN, RDH, RDT, RDTR, RADV, RSRPD = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x2820, 0x282C, 0x2C00
TDBAL, TDBAH, TDLEN, TDH, TDT, TIDV, TXDCTL, TADV = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820, 0x3828, 0x382C
STATISTICS, RXCSUM = 0x4000, 0x5000
MTA, RA, VFTA = 0x5200, 0x5400, 0x5600

CTRL_FD, CTRL_ASDE, CTRL_SLU, CTRL_SPEED = 0x1, 0x20, 0x40, 0x300
CTRL_FRCSPD, CTRL_FRCDPX, CTRL_RST, CTRL_VME, CTRL_PHY_RST = 0x800, 0x1000, 1 << 26, 1 << 30, 1 << 31
CTRL_EXT_EE_RST = 0x2000
STATUS_FD, STATUS_LU = 0x1, 0x2

EECD_SK, EECD_CS, EECD_DI, EECD_DO, EECD_FWE, EECD_REQ, EECD_GNT, EECD_PRES = 0x1, 0x2, 0x4, 0x8, 0x30, 0x40, 0x80, 0x100
EERD_START, EERD_DONE = 0x1, 0x10
MDIC_WRITE, MDIC_READ, MDIC_READY, MDIC_INTERRUPT, MDIC_ERROR = 1 << 26, 2 << 26, 1 << 28, 1 << 29, 1 << 30

# Interrupt causes (13.4.17)
TXDW, TXQE, LSC, RXDMT0, RXO, RXT0, MDAC, TXD_LOW, SRPD = 0x1, 0x2, 0x4, 0x10, 0x40, 0x80, 0x200, 0x8000, 0x10000
CAUSES = 0x1F6FF

RCTL_EN, RCTL_UPE, RCTL_MPE, RCTL_LPE, RCTL_LBM = 0x2, 0x8, 0x10, 0x20, 0xC0
RCTL_BAM, RCTL_VFE, RCTL_CFIEN, RCTL_CFI = 0x8000, 0x40000, 0x80000, 0x100000
RCTL_DPF, RCTL_PMCF, RCTL_BSEX, RCTL_SECRC = 0x400000, 0x800000, 0x2000000, 0x4000000
RXCSUM_IPOFL, RXCSUM_TUOFL = 0x100, 0x200
RAH_AV, RAH_AS = 1 << 31, 0x30000

TCTL_EN, TCTL_PSP = 0x2, 0x8
FPD = 1 << 31                           # of RDTR and TIDV

# Receive descriptor status and errors (3.2.3)
RXD_DD, RXD_EOP, RXD_IXSM, RXD_VP, RXD_TCPCS, RXD_IPCS, RXD_PIF = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40, 0x80
RXD_TCPE, RXD_IPE = 0x20, 0x40

# Transmit descriptor commands (3.3.3.1, 3.3.6.1, 3.3.7.1), in the descriptor's third dword
TXD_EOP, TXD_IFCS, TXD_IC, TXD_TSE, TXD_RS, TXD_RPS, TXD_DEXT, TXD_VLE, TXD_IDE = (
    1 << 24, 1 << 25, 1 << 26, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30, 1 << 31)
TXD_DD = 0x01
TUCMD_TCP, TUCMD_IP, TUCMD_TSE = 1 << 24, 1 << 25, 1 << 26
POPTS_IXSM, POPTS_TXSM = 0x01, 0x02

PLAIN = (
    # Registers that only keep what is written: offset, name, writable bits, initial value
    (0x0028, "FCAL", 0xFFFFFFFF, 0), (0x002C, "FCAH", 0xFFFF, 0),
    (0x0170, "FCTTV", 0xFFFF, 0), (0x0178, "TXCW", 0xC000FFFF, 0),
    (0x0410, "TIPG", 0x3FFFFFFF, 0), (0x0458, "AIT", 0xFFFF, 0),
    (0x0E00, "LEDCTL", 0xCFCFCFCF, 0x07068302), (0x1000, "PBA", 0xFFFF, 0x00100030),
    (0x2160, "FCRTL", 0x8000FFF8, 0), (0x2168, "FCRTH", 0xFFF8, 0),
    (0x2410, "RDFH", 0x1FFF, 0), (0x2418, "RDFT", 0x1FFF, 0), (0x2420, "RDFHS", 0x1FFF, 0),
    (0x2428, "RDFTS", 0x1FFF, 0), (0x2430, "RDFPC", 0x1FFF, 0), (0x2828, "RXDCTL", 0x013F3F3F, 0x01010000),
    (0x3000, "TXDMAC", 0x1, 0),
    (0x3410, "TDFH", 0x7FF, 0x600), (0x3418, "TDFT", 0x7FF, 0x600), (0x3420, "TDFHS", 0x1FFF, 0x600),
    (0x3428, "TDFTS", 0x1FFF, 0x600), (0x3430, "TDFPC", 0x1FFF, 0), (0x3830, "TSPMT", 0xFFFFFFFF, 0x01000400),
    (0x5800, "WUC", 0xF, 0), (0x5808, "WUFC", 0xF80FF, 0), (0x5810, "WUS", 0xF80FF, 0), (0x5820, "MANC", 0xFFFFFFFF, 0),
    (0x5838, "IPAV", 0x1000F, 0), (0x5840, "IP4AT0", 0xFFFFFFFF, 0), (0x5848, "IP4AT1", 0xFFFFFFFF, 0),
    (0x5850, "IP4AT2", 0xFFFFFFFF, 0), (0x5858, "IP4AT3", 0xFFFFFFFF, 0),
    (0x5880, "IP6AT0", 0xFFFFFFFF, 0), (0x5884, "IP6AT1", 0xFFFFFFFF, 0), (0x5888, "IP6AT2", 0xFFFFFFFF, 0),
    (0x588C, "IP6AT3", 0xFFFFFFFF, 0),
    *((0x5F00 + 8 * n, f"FFLT{n}", 0x7FF, 0) for n in range(4)),
    *((0x9000 + 8 * n, f"FFMT{n}", 0xF, 0) for n in range(128)),
    *((0x9800 + 8 * n, f"FFVT{n}", 0xFFFFFFFF, 0) for n in range(128)),
)
PBA = next(index for index, register in enumerate(PLAIN) if register[1] == "PBA")
