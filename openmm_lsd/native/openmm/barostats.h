// The Monte Carlo barostats of a Context: when the next one will try a move, and what they remember
// besides. OpenMM's checkpoints leave that out.

#pragma once

#include <OpenMM.h>
#include <openmm/internal/ContextImpl.h>
#include <openmm/internal/MonteCarloAnisotropicBarostatImpl.h>
#include <openmm/internal/MonteCarloBarostatImpl.h>
#include <openmm/internal/MonteCarloFlexibleBarostatImpl.h>
#include <openmm/internal/MonteCarloMembraneBarostatImpl.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <vector>

namespace barostats {

// Private members; an explicit instantiation may name them.
template <class Impl>
struct Memory {
    int& step;
    int* numAttempted;
    int* numAccepted;
    double* scale;
    size_t scales;
};

template <class Impl, auto Step, auto Attempted, auto Accepted, auto Scale>
struct Members {
    template <class T>
    static T* first(T& scalar) { return &scalar; }
    template <class T, size_t N>
    static T* first(T (&array)[N]) { return array; }
    template <class T>
    static constexpr size_t count(T&) { return 1; }
    template <class T, size_t N>
    static constexpr size_t count(T (&)[N]) { return N; }

    friend Memory<Impl> memoryOf(Impl& impl) {
        return {impl.*Step, first(impl.*Attempted), first(impl.*Accepted), first(impl.*Scale),
                count(impl.*Scale)};
    }
};

#define OPENMM_LSD_BAROSTAT(Impl, scale)                                                            \
    Memory<OpenMM::Impl> memoryOf(OpenMM::Impl&);                                                   \
    template struct Members<OpenMM::Impl, &OpenMM::Impl::step, &OpenMM::Impl::numAttempted,         \
                            &OpenMM::Impl::numAccepted, &OpenMM::Impl::scale>;
OPENMM_LSD_BAROSTAT(MonteCarloBarostatImpl, volumeScale)
OPENMM_LSD_BAROSTAT(MonteCarloAnisotropicBarostatImpl, volumeScale)
OPENMM_LSD_BAROSTAT(MonteCarloFlexibleBarostatImpl, lengthScale)
OPENMM_LSD_BAROSTAT(MonteCarloMembraneBarostatImpl, volumeScale)
#undef OPENMM_LSD_BAROSTAT

// Calls visit(impl, memory) for every barostat.
template <class Visit>
void forEach(OpenMM::ContextImpl& context, Visit&& visit) {
    const auto visitIf = [&](auto* impl) {
        if (impl != nullptr)
            visit(*impl, memoryOf(*impl));
    };
    for (OpenMM::ForceImpl* impl : context.getForceImpls()) {
        visitIf(dynamic_cast<OpenMM::MonteCarloBarostatImpl*>(impl));
        visitIf(dynamic_cast<OpenMM::MonteCarloAnisotropicBarostatImpl*>(impl));
        visitIf(dynamic_cast<OpenMM::MonteCarloFlexibleBarostatImpl*>(impl));
        visitIf(dynamic_cast<OpenMM::MonteCarloMembraneBarostatImpl*>(impl));
    }
}

constexpr long long never = std::numeric_limits<long long>::max();

inline bool moves(const OpenMM::MonteCarloAnisotropicBarostat& barostat) {
    return barostat.getScaleX() || barostat.getScaleY() || barostat.getScaleZ();
}
inline bool moves(const OpenMM::Force&) { return true; }

// Steps that can be done before one at whose start a barostat tries a move; 0: the next step is that.
inline long long stepsBeforeMove(OpenMM::ContextImpl& context) {
    long long least = never;
    forEach(context, [&](auto& impl, auto memory) {
        const int frequency = impl.getOwner().getFrequency();
        if (frequency > 0 && moves(impl.getOwner()))
            least = std::min(least, std::max(0LL, (long long)frequency - memory.step - 1));
    });
    return least;
}

// As if so many steps had been begun, none of them with a move.
inline void countSteps(OpenMM::ContextImpl& context, int steps) {
    forEach(context, [&](auto&, auto memory) { memory.step += steps; });
}

// The start of a step: every barostat that is due tries its move.
inline void beginStep(OpenMM::ContextImpl& context) {
    forEach(context, [&](auto& impl, auto) {
        bool forcesInvalid = false;
        impl.updateContextState(context, forcesInvalid);
    });
}

inline std::vector<double> readMemory(OpenMM::ContextImpl& context) {
    std::vector<double> values;
    forEach(context, [&](auto&, auto memory) {
        values.push_back(memory.step);
        for (size_t i = 0; i < memory.scales; i++)
            values.insert(values.end(), {(double)memory.numAttempted[i],
                                         (double)memory.numAccepted[i], memory.scale[i]});
    });
    return values;
}

inline void writeMemory(OpenMM::ContextImpl& context, const double* values, size_t count) {
    if (count != readMemory(context).size())
        throw std::invalid_argument("these are not the memories of this System's barostats");
    forEach(context, [&](auto&, auto memory) {
        memory.step = (int)*values++;
        for (size_t i = 0; i < memory.scales; i++) {
            memory.numAttempted[i] = (int)*values++;
            memory.numAccepted[i] = (int)*values++;
            memory.scale[i] = *values++;
        }
    });
}

} // namespace barostats
