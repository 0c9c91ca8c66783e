#include "force_classes.h"

#include <cxxabi.h>

#include <cstdlib>
#include <typeinfo>

std::string className(const OpenMM::Force& force) {
    char* name = abi::__cxa_demangle(typeid(force).name(), nullptr, nullptr, nullptr);
    const std::string result = name == nullptr ? typeid(force).name() : name;
    std::free(name);
    return result;
}

bool hasPeriodicCutoff(const OpenMM::System& system) {
    for (int i = 0; i < system.getNumForces(); i++) {
        const std::string name = className(system.getForce(i));
        for (const char* kind : {"Nonbonded", "GayBerne", "AmoebaVdw", "AmoebaMultipole"})
            if (name.find(kind) != std::string::npos &&
                system.getForce(i).usesPeriodicBoundaryConditions())
                return true;
    }
    return false;
}

bool callsPython(const OpenMM::Force& force) {
    if (dynamic_cast<const OpenMM::PythonForce*>(&force) != nullptr)
        return true;
    if (const auto* variables = dynamic_cast<const OpenMM::CustomCVForce*>(&force))
        for (int i = 0; i < variables->getNumCollectiveVariables(); i++)
            if (callsPython(variables->getCollectiveVariable(i)))
                return true;
    if (const auto* alchemical = dynamic_cast<const OpenMM::ATMForce*>(&force))
        for (int i = 0; i < alchemical->getNumForces(); i++)
            if (callsPython(alchemical->getForce(i)))
                return true;
    return false;
}
