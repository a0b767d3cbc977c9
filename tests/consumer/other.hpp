#pragma once

/// The version of mhr that the other translation unit was compiled with.
int other_version();
