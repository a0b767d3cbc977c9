// Names that the headers of hosts take away from everything that is included after them: they
// define them as macros, with or without arguments as here. No header of ours may use one.
//
// Each becomes a character that no compiler accepts, so that no use passes by luck, as a field
// called `slots` would where Qt makes nothing of that name.

// A host that is included before has some of them.
#pragma GCC system_header

// Qt, unless QT_NO_KEYWORDS is defined.
#define slots @
#define signals @
#define emit @
#define foreach(variable, container) @
#define forever @

// The Windows SDK: minwindef.h, rpcndr.h, wingdi.h, winerror.h and others.
#define min(a, b) @
#define max(a, b) @
#define small @
#define hyper @
#define near @
#define far @
#define pascal @
#define cdecl @
#define interface @
#define NEAR @
#define FAR @
#define IN @
#define OUT @
#define OPTIONAL @
#define CONST @
#define VOID @
#define TRUE @
#define FALSE @
#define THIS @
#define STRICT @
#define ERROR @
#define NO_ERROR @
#define DELETE @
#define ABSOLUTE @
#define RELATIVE @
#define TRANSPARENT @
#define OPAQUE @
#define GetObject @
#define GetMessage @
#define CreateFile @

// Apple's AssertMacros.h.
#define require(condition, label) @
#define require_action(condition, label, action) @
#define require_noerr(error, label) @
#define require_quiet(condition, label) @
#define require_string(condition, label, message) @
#define check(condition) @
#define check_noerr(error) @
#define check_string(condition, message) @
#define verify(condition) @
#define verify_noerr(error) @
#define verify_action(condition, action) @

// X11: X.h and Xlib.h.
#define None @
#define Bool @
#define Status @
#define Success @
#define True @
#define False @
#define Always @
#define Never @
#define Above @
#define Below @
#define Complex @
#define Convex @
#define Nonconvex @
#define Opposite @
#define Unsorted @
#define GrayScale @
#define CursorShape @
#define FocusIn @
#define FocusOut @
#define Expose @
#define KeyPress @

// Arduino.h, and its Print.h and binary.h.
#define F(text) @
#define PI @
#define TWO_PI @
#define DEC @
#define HEX @
#define OCT @
#define BIN @
#define HIGH @
#define LOW @
#define INPUT @
#define OUTPUT @
#define DEFAULT @
#define abs(x) @
#define round(x) @
#define sq(x) @
#define constrain(x, low, high) @
#define radians(degrees) @
#define degrees(radians) @
#define bit(number) @
#define bitRead(value, number) @
#define bitSet(value, number) @
#define bitClear(value, number) @
#define bitWrite(value, number, to) @
#define lowByte(value) @
#define highByte(value) @
#define word(...) @
#define B0 @
#define B1 @
#define B00 @
#define B01 @
#define B10 @
#define B11 @

// <termios.h>.
#define B50 @
#define B110 @

// GLib, and sys/param.h of BSD and glibc.
#define MIN(a, b) @
#define MAX(a, b) @
#define ABS(a) @
#define CLAMP(x, low, high) @

// <complex.h>.
#define I @
#define complex @
#define imaginary @

// sys/sysmacros.h, which sys/types.h of older systems includes.
#define major(device) @
#define minor(device) @
#define makedev(major, minor) @

// GNU's dialects of C++, on their systems.
#define linux @
#define unix @
