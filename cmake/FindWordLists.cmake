# The word lists that the demo learns from, as Debian's packages install them.
#
#   WordLists_FOUND      whether all of them are there
#   WordLists_MISSING    the files that are not
#   WordLists_PACKAGES   the Debian packages that have these

set(dict /usr/share/dict)
set(hunspell /usr/share/hunspell)
set(lists
    wamerican         ${dict}/american-english
    wcatalan          ${dict}/catalan
    wdanish           ${dict}/danish
    wdutch            ${dict}/dutch
    wesperanto        ${dict}/esperanto
    wfaroese          ${dict}/faroese
    wfrench           ${dict}/french
    wgalician-minimos ${dict}/galician-minimos
    wirish            ${dict}/irish
    witalian          ${dict}/italian
    wmanx             ${dict}/manx
    wngerman          ${dict}/ngerman
    wnorwegian        ${dict}/bokmaal
    wnorwegian        ${dict}/nynorsk
    wpolish           ${dict}/polish
    wportuguese       ${dict}/portuguese
    wspanish          ${dict}/spanish
    wswedish          ${dict}/swedish
    hunspell-af       ${hunspell}/af_ZA.dic
    hunspell-an       ${hunspell}/an_ES.dic
    hunspell-br       ${hunspell}/br_FR.dic
    hunspell-bs       ${hunspell}/bs_BA.dic
    hunspell-cs       ${hunspell}/cs_CZ.dic
    hunspell-eu       ${hunspell}/eu.dic
    hunspell-gd       ${hunspell}/gd_GB.dic
    hunspell-gug      ${hunspell}/gug_PY.dic
    hunspell-hr       ${hunspell}/hr_HR.dic
    hunspell-hu       ${hunspell}/hu_HU.dic
    hunspell-id       ${hunspell}/id_ID.dic
    hunspell-is       ${hunspell}/is_IS.dic
    hunspell-kmr      ${hunspell}/kmr_Latn.dic
    hunspell-lt       ${hunspell}/lt_LT.dic
    hunspell-lv       ${hunspell}/lv_LV.dic
    hunspell-oc       ${hunspell}/oc_FR.dic
    hunspell-ro       ${hunspell}/ro_RO.dic
    hunspell-sk       ${hunspell}/sk_SK.dic
    hunspell-sl       ${hunspell}/sl_SI.dic
    hunspell-sw       ${hunspell}/sw_TZ.dic
    hunspell-tr       ${hunspell}/tr_TR.dic
    hunspell-vi       ${hunspell}/vi_VN.dic
    myspell-et        ${hunspell}/et_EE.dic
    myspell-sq        ${hunspell}/sq_AL.dic
    myspell-tl        ${hunspell}/tl.dic)

set(WordLists_MISSING "")
set(WordLists_PACKAGES "")
while(lists)
    list(POP_FRONT lists package file)
    if(NOT EXISTS ${file})
        list(APPEND WordLists_MISSING ${file})
        list(APPEND WordLists_PACKAGES ${package})
    endif()
endwhile()
list(REMOVE_DUPLICATES WordLists_PACKAGES)

if(WordLists_MISSING)
    set(WordLists_FOUND FALSE)
else()
    set(WordLists_FOUND TRUE)
endif()
