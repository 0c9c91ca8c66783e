// Each adds to the module what its file is about.

#pragma once

#include <nanobind/nanobind.h>

void bindIntegrator(nanobind::module_& m);
void bindConstraints(nanobind::module_& m); // before schemes
void bindRound(nanobind::module_& m);       // before what has rollouts
void bindDrafting(nanobind::module_& m);
void bindForces(nanobind::module_& m); // before those of a Context
void bindContextAccess(nanobind::module_& m);
void bindValence(nanobind::module_& m);
void bindEstimates(nanobind::module_& m);
void bindOpenMM(nanobind::module_& m);
